import json
import re
import shutil

import numpy as np
import pytest
from command_line import DEMO, demo_rows, trained_folder
from scipy.special import softmax

from swag_trainer import SwagPosterior
from swag_trainer.cli.main import main
from swag_trainer.cli.split_names import check_apart
from swag_trainer.evaluation.measurement import Measurement
from swag_trainer.evaluation.methods import METHODS

DATA = ["--dataset", str(DEMO)]
QUICK = ["--num-resamples", "2", "--methods", "SWA", "SWAG", "--num-samples", "2"]


@pytest.fixture(scope="module")
def model():
    return str(trained_folder())


def test_another_methods_draws_are_measured_beside_ours(model, tmp_path, capsys):
    # Red for: probabilities of a file that are not averaged, a method without a column, a metric that only one method has on a card.
    labels = SwagPosterior.from_pretrained(model).record.labels
    targets = [labels.index(row["intent"]) for row in demo_rows() if row["split"] == "test" and row["intent"] in labels]
    draws = softmax(np.random.default_rng(0).normal(size=(3, len(targets), len(labels))), axis=-1)
    np.savez(tmp_path / "theirs.npz", probabilities=draws)
    file = tmp_path / "results.json"
    assert (
        main(["evaluate", model, *DATA, *QUICK, "--draws-file", f"theirs={tmp_path / 'theirs.npz'}", "--output", str(file)])
        == 0
    )
    shown = capsys.readouterr().out
    assert "theirs" in shown and "NLL" in shown
    results = Measurement.read(file)
    assert list(results.metrics) == ["SWA", "SWAG", "theirs"]
    expected = -np.log(draws.mean(axis=0)[np.arange(len(targets)), targets]).mean()
    assert results.metrics["theirs"]["nll"].value == pytest.approx(expected, rel=1e-12)
    assert results.to_card().seconds_per_example.keys() == {"SWA", "SWAG"}
    # A line of the plot is the line that was measured; the file comes back as it was written.
    assert results.methods["theirs"].bins.counts.sum() == len(targets)
    assert results.methods["SWAG"].curve.risk[-1] == pytest.approx(1 - results.metrics["SWAG"]["accuracy"].value)
    assert json.loads(results.to_json()) == json.loads(file.read_text())


def test_map_is_the_last_snapshot_unless_the_adapters_file_is_asked_for(model, tmp_path):
    # Red for: a MAP that is the mean, and so SWA under another name.
    found = {}
    for weights in ("last", "adapter"):
        file = str(tmp_path / f"{weights}.json")
        options = ["--methods", "MAP", "SWA", "--num-resamples", "2", "--map-weights", weights]
        assert main(["evaluate", model, *DATA, *options, "--output", file]) == 0
        found[weights] = Measurement.read(file)
        assert found[weights].map_weights == weights
    assert found["adapter"].metrics["MAP"] == found["adapter"].metrics["SWA"] == found["last"].metrics["SWA"]
    assert found["last"].metrics["MAP"] != found["last"].metrics["SWA"]


def test_baselines_get_their_temperatures_from_the_split_that_the_posterior_was_tuned_on(model, tmp_path, capsys):
    # Red for: a tuned posterior compared with untuned baselines by default, temperatures from the examples to measure, a verdict about
    # the weakest rival; or methods that are left out without a word.
    tuned = str(tmp_path / "tuned")
    assert main(["tune", model, *DATA, "--num-samples", "2", "--output", tuned]) == 0
    quick = ["--num-resamples", "20", "--num-samples", "2"]
    shown = {}
    for name, options in (
        ("default", []),
        ("named", ["--validation-split", "validation"]),
        ("tuning", ["--split", "validation"]),
    ):
        capsys.readouterr()
        assert main(["evaluate", tuned, *DATA, *quick, *options, "--output", str(tmp_path / f"{name}.json")]) == 0
        shown[name] = capsys.readouterr()
    measured = {name: Measurement.read(tmp_path / f"{name}.json") for name in shown}
    assert measured["default"].metrics == measured["named"].metrics
    assert list(measured["default"].metrics) == list(METHODS[:6])
    assert "Left out: 'Ensemble'. " in shown["default"].err and "A posterior is fitted to training ex" in shown["default"].err
    assert "'MAP, temperature', 'MC dropout, temperature'. A temperature needs validation" in shown["tuning"].err
    assert "temperature" not in shown["default"].err
    assert list(measured["tuning"].metrics) == ["MAP", "SWA", "SWAG", "MC dropout"]
    rivals = {name: found["nll"].value for name, found in measured["default"].metrics.items() if name not in ("SWA", "SWAG")}
    verdict = shown["default"].out.splitlines()[-1]
    assert min(rivals, key=rivals.get).replace(", ", " + ") in verdict and "on 420 examples" in verdict


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--validation-split", "test"], "nothing may be fitted on what is measured"),
        (["--train-split", "test"], "--train-split and --split are both 'test'"),
        (["--methods", "TFB"], "training examples with labels: train=..., --train-split"),
        (["--ood", str(DEMO), "--ood-split", "train"], "are also among the examples to measure"),
        (["--draws-file", "SWAG=x.npz"], "NAME=FILE with a name of its own"),
        (["--draws-file", "x.npz"], "NAME=FILE"),
        (["--methods", "SWAG", "Magic"], "Magic"),
    ],
)
def test_a_measurement_that_would_mean_nothing_is_refused(model, options, words, capsys):
    # Red for: metrics on examples that something was fitted on, or in-distribution examples as OOD ones.
    split = ["--split", "train"] if "--ood" in options else []
    assert main(["evaluate", model, *DATA, *split, *options]) == 1
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown


def test_the_only_file_is_not_fitted_on_under_its_other_name(model, tmp_path, capsys):
    # Red for: splits compared as they are named in the command, where all of the only file has its own name and parts of it are held out.
    rows = [json.loads(line) for line in DEMO.read_text().splitlines()]
    file = tmp_path / "data.jsonl"
    file.write_text(
        "".join(json.dumps({"text": row["text"], "label": row["intent"]}) + "\n" for row in rows if row["split"] == "train")
    )
    for command, option, split in (
        ("evaluate", "--validation-split", "validation"),
        ("evaluate", "--train-split", "train"),
        ("tune", "--train-split", "train"),
    ):
        output = ["--output", str(tmp_path / "tuned")] if command == "tune" else []
        assert main([command, model, "--dataset", str(file), "--split", "data", option, split, *output]) == 1
        assert "which share examples" in capsys.readouterr().err
    check_apart("train, a part held out", {"--train-split": "train, without a part held out", "--validation-split": None})


def test_results_are_not_overwritten_unasked(model, tmp_path, capsys):
    # Red for: minutes of measuring before the refusal, or yesterday's metrics gone.
    for option in ("--output", "--rows"):
        (tmp_path / "mine").write_text("mine")
        assert main(["evaluate", model, "--dataset", "no/data", option, str(tmp_path / "mine")]) == 1
        assert "--overwrite replaces it" in capsys.readouterr().err


def test_tuning_is_saved_where_it_was_asked_for_and_never_replaced_unasked(model, tmp_path, capsys):
    # Red for: a posterior that changes in place unasked, a second tuning over the first, a repository that cannot be written to.
    shutil.copytree(model, tmp_path / "copy")
    quick = ["--num-samples", "2", "--scales", "1"]
    assert main(["tune", model, *DATA, *quick, "--output", str(tmp_path / "tuned")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Chosen: [a-z ]+, scale (0|1) \(relative energy \S+\), dropout (yes|no), temperature \d\.\d{3}", printed)
    assert SwagPosterior.from_pretrained(model).tuning is None
    tuning = SwagPosterior.from_pretrained(tmp_path / "tuned").tuning
    assert (tuning.dataset, tuning.split, tuning.num_samples, tuning.num_examples) == ("support.jsonl", "validation", 2, 200)
    assert (tmp_path / "tuned" / "tokenizer_config.json").exists()
    assert main(["tune", str(tmp_path / "copy"), *DATA, *quick]) == 0
    for command, words in (
        ([str(tmp_path / "copy")], "was tuned already"),
        ([model, "--output", str(tmp_path / "tuned")], "holds a posterior already"),
        (["user/repo"], "needs --output FOLDER"),
    ):
        capsys.readouterr()
        assert main(["tune", *command, *DATA, *quick]) == 1
        assert words in capsys.readouterr().err
