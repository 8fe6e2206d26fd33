"""Every command checks and makes its outputs before it loads a model, and leaves nothing behind where it fails."""

import json
import shutil

import numpy as np
import pytest
from command_line import DEMO, demo_base, trained_folder

from swag_trainer.cli import card, collect, evaluate, fit, mix, predict, train, tune
from swag_trainer.cli.files import prepared_outputs
from swag_trainer.cli.main import main
from swag_trainer.errors import SwagError

DATA = ["--dataset", str(DEMO)]


@pytest.fixture(scope="module")
def model():
    return str(trained_folder())


def commands(model, where):
    """Each command that writes, with its output at ``where``."""
    return {
        "train": ["train", demo_base(), *DATA, "--output", where],
        "collect": ["collect", model, model, "--output", where],
        "tune": ["tune", model, *DATA, "--output", where],
        "evaluate --rows": ["evaluate", model, *DATA, "--rows", where],
        "evaluate --output": ["evaluate", model, *DATA, "--output", where],
        "fit": ["fit", model, *DATA, "--output", where],
        "mix": ["mix", model, model, "--output", where],
        "predict": ["predict", model, "text", "--output", f"{where}.jsonl"],
        "card": ["card", model, "--output", f"{where}.md"],
    }


@pytest.fixture
def nothing_loads(monkeypatch):
    """Fails where a command loads a posterior, a model, a tokenizer or data."""

    def load(*arguments, **options):
        raise AssertionError("loaded before the outputs were checked")

    for module, name in (
        (train, "read_text"),
        (collect, "posterior_from_checkpoints"),
        (tune, "load_posterior"),
        (tune, "held_out_examples"),
        (evaluate, "read_evaluation_data"),
        (fit, "read_text"),
        (mix, "PosteriorMixture"),
        (predict, "find_task"),
        (card, "load_posterior"),
    ):
        monkeypatch.setattr(module, name, load)


@pytest.mark.parametrize(
    "command", ["train", "collect", "tune", "evaluate --rows", "evaluate --output", "fit", "mix", "predict", "card"]
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_loaded(command, model, tmp_path, nothing_loads, capsys):
    # Red for: minutes of work before a folder turns out to be a file.
    (tmp_path / "file").write_text("mine")
    assert main(commands(model, str(tmp_path / "file" / "out"))[command]) == 1
    shown = capsys.readouterr().err
    assert f"Nothing can be written into the folder {str(tmp_path / 'file')!r}" in shown or "Not a directory" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_rows_go_into_a_new_folder_beside_the_results(model, tmp_path):
    # Red for: a folder that is missing when everything has been measured.
    rows, results = tmp_path / "new" / "deeper" / "r.parquet", tmp_path / "other" / "results.json"
    quick = ["--methods", "SWA", "--num-resamples", "2"]
    assert main(["evaluate", model, *DATA, *quick, "--rows", str(rows), "--output", str(results)]) == 0
    assert rows.stat().st_size > 1000 and json.loads(results.read_text())["methods"]


def test_folders_of_a_command_that_fails_go_again_and_those_of_others_stay(model, tmp_path, capsys):
    # Red for: an empty folder for each attempt, or a folder of the user's that is removed.
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "new/deeper"):
        command = ["predict", model, "text", "--risk", "0.05", "--output", str(tmp_path / folder / "p.jsonl")]
        assert main(command) == 1
        assert "was not tuned" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_two_outputs_of_one_path_are_refused(model, tmp_path, capsys):
    # Red for: results that the rows replace, or the run of one seed in the place of the other's.
    same = [str(tmp_path / "r"), str(tmp_path / "x" / ".." / "r")]
    assert main(["evaluate", model, *DATA, "--rows", same[0], "--output", same[1]]) == 1
    assert "Two outputs have the path" in capsys.readouterr().err
    assert main(["train", demo_base(), *DATA, "--output", str(tmp_path), "--seeds", "1", "1"]) == 1
    assert "--seeds names 1 twice" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_not_replaced_unasked(model, tmp_path, capsys):
    # Red for: the adapter of another run gone, because no posterior lies beside it.
    (tmp_path / "adapter_model.safetensors").write_text("mine")
    for command in ("train", "collect", "tune"):
        assert main(commands(model, str(tmp_path))[command]) == 1
        assert "holds an adapter already; --overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "adapter_model.safetensors").read_text() == "mine"


def test_a_folder_where_nothing_can_be_written_is_named(tmp_path):
    # Red for: a check by permissions, which root passes everywhere.
    with pytest.raises(SwagError, match="/proc"), prepared_outputs(files=["/proc/new.json"], overwrite=False):
        pass
    with pytest.raises(SwagError, match="is a folder"), prepared_outputs(files=[tmp_path], overwrite=True):
        pass


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        ("evaluate", ["--num-bins", "0"], "--num-bins must be at least 1, got 0"),
        ("evaluate", ["--num-resamples", "0"], "--num-resamples must be at least 1, got 0"),
        ("evaluate", ["--num-samples", "0"], "--num-samples must be at least 1, got 0"),
        ("evaluate", ["--draws-file", "theirs={draws}"], "has predictions for 3 examples; the split 'test'"),
        ("predict", ["text", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        ("predict", ["text", "--num-samples", "0"], "must be at least 1, got 0"),
        ("predict", ["text", "--risk", "2"], "between 0 and 1, got 2"),
        ("predict", ["text", "--scale", "-1"], "-1"),
        ("predict", ["--file", "{empty}"], "There are no texts in"),
        ("tune", ["--num-samples", "0"], "at least 1, got 0"),
        ("tune", ["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        ("train", ["--steps", "0"], "--steps must be at least 1, got 0"),
        ("train", ["--train-rows", "-1"], "--train-rows must be at least 1, got -1"),
        ("serve", ["--port", "70000"], "--port must lie between 0 and 65535"),
        ("serve", ["--num-samples", "0"], "--num-samples must be at least 1, got 0"),
        ("push", ["--repo", "a//b"], "--repo 'a//b' is not the id of a repository"),
        ("push", ["--repo", "user/x", "--results", "missing.json"], "missing.json"),
        ("card", ["--results", "missing.json"], "missing.json"),
    ],
)
def test_an_impossible_number_or_name_is_refused_before_anything_is_loaded(command, options, expected, tmp_path, capsys):
    # Red for: `--steps 0`, for which the Trainer takes three epochs; a refusal of bins after all predictions; a model loaded first.
    np.savez(tmp_path / "draws.npz", probabilities=np.full((2, 3, 10), 0.1))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "model").mkdir()  # without a posterior: whatever loads it says so
    options = [option.format(draws=tmp_path / "draws.npz", empty=tmp_path / "empty.txt") for option in options]
    data = DATA if command in ("evaluate", "tune", "train") else []
    output = ["--output", str(tmp_path / "out")] if command == "train" else []
    assert main([command, str(tmp_path / "model"), *options, *data, *output]) == 1
    shown = capsys.readouterr().err
    assert expected in shown and "swag_posterior" not in shown and "Traceback" not in shown


def test_a_readme_that_is_no_text_is_named(model, tmp_path, capsys):
    # Red for: "codec can't decode byte" without the name of a file.
    shutil.copytree(model, tmp_path / "run")
    (tmp_path / "run" / "README.md").write_bytes(b"\xff\xfe\x00")
    for command in (["card"], ["push", "--repo", "user/cli-odd-readme"]):
        assert main([command[0], str(tmp_path / "run"), *command[1:]]) == 1
        assert "README.md' cannot be read as text" in capsys.readouterr().err
