"""`swag-trainer evaluate` of models without a posterior."""

import json

import pytest
from command_line import DEMO, demo_rows, plain_adapter, trained_folder
from headless import headless_base
from huggingface_hub import HfApi
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from swag_trainer import SwagPosterior
from swag_trainer.cli.main import main
from swag_trainer.evaluation.measurement import Measurement

QUICK = ["--dataset", str(DEMO), "--num-resamples", "20", "--num-samples", "2", "--validation-split", "validation"]
PLAIN = ["MAP", "MAP, temperature", "MC dropout", "MC dropout, temperature"]


def evaluated(model, tmp_path, *options):
    file = tmp_path / "results.json"
    assert main(["evaluate", str(model), *QUICK, "--output", str(file), "--overwrite", *options]) == 0
    return Measurement.read(file)


@pytest.fixture(scope="module")
def labels():
    return SwagPosterior.from_pretrained(trained_folder()).record.labels


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The NLL of the adapter's own weights, measured beside its posterior."""
    measured = evaluated(
        trained_folder(), tmp_path_factory.mktemp("expected"), "--map-weights", "adapter", "--methods", *PLAIN[:2]
    )
    return {name: found["nll"].value for name, found in measured.metrics.items()}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The trained adapter without its posterior, as plain PEFT saves it."""
    return plain_adapter(tmp_path_factory.mktemp("plain") / "adapter")


@pytest.mark.parametrize("place", ["a folder", "the Hub"])
def test_a_plain_adapter_is_measured_with_the_names_that_it_is_given(place, adapter, labels, expected, tmp_path, hub, capsys):
    # Red for: an adapter refused for want of a posterior, a head of another size than the base's, labels in another order, a posterior
    # made up for it.
    model = adapter
    if place == "the Hub":
        model = "user/plain-adapter"
        HfApi().create_repo(model)
        HfApi().upload_folder(repo_id=model, folder_path=adapter)
    measured = evaluated(model, tmp_path, "--labels", *labels)
    shown = capsys.readouterr().out
    assert list(measured.methods) == PLAIN and measured.posterior is None and measured.map_weights is None
    for name, nll in expected.items():
        assert measured.metrics[name]["nll"].value == pytest.approx(nll, abs=1e-6)
    assert {each.method for each in measured.comparisons} == {"MAP, temperature"}
    assert shown.splitlines()[-1] == measured.verdict and "MAP + temperature" in measured.verdict


def test_a_whole_model_is_measured_with_its_own_names_in_whatever_case(adapter, labels, expected, tmp_path, capsys):
    # Red for: a transformers classifier refused, or labels that differ in case only.
    base = AutoModelForSequenceClassification.from_pretrained(
        json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"],
        num_labels=len(labels),
        id2label={index: name.upper() for index, name in enumerate(labels)},
        label2id={name.upper(): index for index, name in enumerate(labels)},
        ignore_mismatched_sizes=True,
    )
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(tmp_path / "whole")
    AutoTokenizer.from_pretrained(adapter).save_pretrained(tmp_path / "whole")
    measured = evaluated(tmp_path / "whole", tmp_path)
    assert list(measured.methods) == PLAIN
    for name, nll in expected.items():
        assert measured.metrics[name]["nll"].value == pytest.approx(nll, abs=1e-5)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "whole"), *QUICK, "--map-weights", "last"]) == 1
    assert "has none" in capsys.readouterr().err


def test_labels_that_cannot_be_matched_are_not_guessed(adapter, labels, tmp_path, capsys):
    # Red for: classes matched in the order of the alphabet, a name twice, a name too few.
    for options, said in (
        ([], "Name them in the order of the model's logits: --labels"),
        (["--labels", *labels[:-1]], "names each of the model's "),
        (["--labels", *labels[:-1], labels[0]], "names each of the model's "),
    ):
        assert main(["evaluate", str(adapter), *QUICK, *options]) == 1
        assert said in capsys.readouterr().err
    # Whole numbers are the numbers of the classes.
    rows = [row for row in demo_rows() if row["intent"] in labels]
    numbered = [{"text": row["text"], "label": labels.index(row["intent"]), "split": row["split"]} for row in rows]
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(json.dumps, numbered)))
    options = ["--dataset", str(tmp_path / "numbers.jsonl"), "--methods", "MAP", "--num-resamples", "2"]
    assert main(["evaluate", str(adapter), *options, "--output", str(tmp_path / "a.json")]) == 0
    assert (
        main(["evaluate", str(adapter), *QUICK[:2], *options[2:], "--labels", *labels, "--output", str(tmp_path / "b.json")])
        == 0
    )
    found = [Measurement.read(tmp_path / name).metrics["MAP"]["nll"].value for name in ("a.json", "b.json")]
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_what_is_no_trained_classifier_is_refused(tmp_path, base_folder, capsys):
    # Red for: a random head that is measured, or a traceback for a folder that holds no model.
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", str(tmp_path / "empty"), *QUICK]) == 1
    assert "has no posterior and no adapter, and cannot be loaded as a text classifier" in capsys.readouterr().err
    assert main(["evaluate", headless_base(base_folder, tmp_path / "headless"), *QUICK]) == 1
    assert (
        "is not a trained classifier: its checkpoint lacks ['classifier.bias', 'classifier.weight']" in capsys.readouterr().err
    )
    assert main(["evaluate", "user/there-is-none", *QUICK]) == 1
    assert "There is no repository 'user/there-is-none'" in capsys.readouterr().err
