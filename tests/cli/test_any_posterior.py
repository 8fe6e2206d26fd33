"""Commands read a posterior once, and work with every kind of it."""

import json
import shutil

import pytest
from command_line import DEMO, trained_folder

from swag_trainer.cli.classifier import load_classifier
from swag_trainer.cli.main import main
from swag_trainer.cli.options import ClassifierOptions
from swag_trainer.cli.page import build_page
from swag_trainer.evaluation.measurement import Measurement
from swag_trainer.posterior import base, load_posterior
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.posterior.saved_adapter import SavedAdapter

DATA = ["--dataset", str(DEMO)]
QUICK = ["--num-resamples", "2", "--methods", "SWA", "SWAG", "--num-samples", "2"]


@pytest.fixture(scope="module")
def point(tmp_path_factory):
    """A point estimate beside its adapter and tokenizer."""
    folder = tmp_path_factory.mktemp("point") / "run"
    shutil.copytree(trained_folder(), folder)
    posterior = load_posterior(folder)
    PointPosterior.at(posterior.mean_vector(), posterior).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("command", ["predict", "evaluate", "tune", "inspect", "card", "push"])
def test_a_command_reads_the_posterior_and_its_adapter_once(command, tmp_path, monkeypatch, hub):
    # Red for: a posterior of hundreds of megabytes that is read to look at one field, and read again to be used.
    run = str(shutil.copytree(trained_folder(), tmp_path / "run"))
    options = {
        "predict": ["text"],
        "evaluate": [*DATA, *QUICK, "--output", str(tmp_path / "results.json")],
        "tune": [*DATA, "--num-samples", "2", "--scales", "1"],
        "push": ["--repo", "user/cli-loads"],
    }
    reads, read_folder, read_adapter = [], base.read_folder, SavedAdapter.read.__func__
    monkeypatch.setattr(base, "read_folder", lambda folder: reads.append("posterior") or read_folder(folder))
    monkeypatch.setattr(
        SavedAdapter, "read", classmethod(lambda cls, folder: reads.append("adapter") or read_adapter(cls, folder))
    )
    assert main([command, run, *options.get(command, [])]) == 0
    assert sorted(reads) == ["adapter", "posterior"]


def test_commands_take_a_point_estimate_as_they_take_swag(point, tmp_path, capsys):
    # Red for: a rank, snapshots or a trajectory that every posterior is expected to have.
    assert main(["inspect", point, "--json"]) == 0
    metadata = json.loads(capsys.readouterr().out)
    assert metadata["kind"] == "point" and metadata["scale"] == 0 and "rank" not in metadata
    assert main(["predict", point, "where is my parcel"]) == 0
    prediction = json.loads(capsys.readouterr().out)
    assert prediction["mutual_information"] == 0
    assert main(["predict", str(trained_folder()), "where is my parcel", "--scale", "0"]) == 0
    assert json.loads(capsys.readouterr().out) == prediction
    results = tmp_path / "results.json"
    assert main(["evaluate", point, *DATA, "--methods", "MAP", "SWA", "--num-resamples", "2", "--output", str(results)]) == 0
    assert Measurement.read(results).map_weights == "adapter"
    assert main(["card", point, "--results", str(results), "--output", str(tmp_path / "README.md")]) == 0
    blocks = build_page(load_classifier(ClassifierOptions(model=point)), text="hello").blocks.values()
    shown = {block.elem_id: block.value for block in blocks if hasattr(block, "value")}
    assert "of a posterior of kind 'point'" in shown["about"]
