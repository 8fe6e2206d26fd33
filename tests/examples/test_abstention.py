import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from headless import headless_base
from transformers import pipeline

from swag_trainer import SwagError, SwagPosterior
from swag_trainer.posterior.tuning import CalibratedThreshold

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = EXAMPLES / "data" / "support.jsonl"


@pytest.fixture
def abstention(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import abstention

    # What it silences would stay silent for the tests after this one.
    monkeypatch.setattr(abstention, "quiet_libraries", lambda: None)
    return abstention


def test_risk_and_coverage_are_counted_over_the_right_examples(abstention):
    # Red for: wrong labels divided by all examples, an abstention counted as wrong, its top label forgotten.
    texts = {"test": ["a", "b", "c", "d"]}
    task = abstention.TextTask("t", ["x", "y"], texts, {"test": np.array([0, 0, 1, 1])}, [])
    predictions = [{"label": "x"}, {"label": "y"}, {"label": None, "top_label": "y"}, {"label": None, "top_label": "x"}]
    assert abstention.measured_abstention(predictions, task) == {"coverage": 0.5, "risk": 0.5, "risk_of_all": 0.5}
    predictions[3]["top_label"] = "y"
    assert abstention.measured_abstention(predictions, task)["risk_of_all"] == 0.25


def a_task(abstention, ood=()):
    return abstention.TextTask("t", ["x", "y"], {"test": ["a", "b", "c", "d"]}, {"test": np.array([0, 0, 1, 1])}, list(ood))


def test_nothing_given_has_no_risk(abstention):
    # Red for: the mean of nothing, and a warning about it.
    predictions = [{"label": None, "top_label": "x"}] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = abstention.measured_abstention(predictions, a_task(abstention))
    assert (metrics["coverage"], metrics["risk_of_all"]) == (0, 0.5) and np.isnan(metrics["risk"])


def test_the_sentence_about_abstaining_is_of_the_goal_and_of_both_kinds_of_examples(abstention):
    # Red for: OOD examples with a label counted as deferred, or predicted without the goal; an error where no threshold has the guarantee.
    given = {
        "a": {"label": "x"},
        "b": {"label": "y"},
        "c": {"label": "y"},
        "d": {"label": None, "top_label": "x"},
        "far": {"label": None, "top_label": "x"},
        "farther": {"label": None, "top_label": "y"},
        "near": {"label": "x"},
    }

    def classify(texts, *, risk):
        if risk == 0.01:
            raise SwagError("No threshold could be promised.")
        assert risk == 0.3
        return [given[text] for text in texts]

    task = a_task(abstention, ood=["far", "farther", "near"])
    assert abstention.describe_abstaining(classify, task, risk=0.3) == (
        "risk 0.3: coverage 0.750, risk 0.333 (0.500 without abstention); deferred 0.667 of the out-of-distribution examples."
    )
    assert "out-of" not in abstention.describe_abstaining(classify, a_task(abstention), risk=0.3)
    shown = abstention.describe_abstaining(classify, task, risk=0.01)
    assert shown == "risk 0.01: no predictions. No threshold could be promised."


def test_the_sentence_about_sets_counts_labels_and_those_that_hold_the_true_one(abstention):
    # Red for: sets without the true label counted, the length of something else.
    def classify(texts, *, prediction_set):
        assert (texts, prediction_set) == (["a", "b", "c", "d"], abstention.LEVEL)
        return [{"label": "x", "prediction_set": names} for names in (["x"], ["x", "y"], ["x"], ["x", "y"])]

    assert "hold the true label 0.750 of the time, with 1.50 labels" in abstention.describe_sets(classify, a_task(abstention))


def test_the_table_has_each_number_in_its_column(abstention):
    # Red for: coverage and risk exchanged, a threshold that could not be found shown as a number.
    thresholds = [
        CalibratedThreshold("risk", 0.05, threshold=0.875, coverage=0.625, risk=0.04, level=0.9),
        CalibratedThreshold("coverage", 0.9, threshold=None, coverage=0.0, risk=None),
    ]
    tuning = SimpleNamespace(temperature=1.25, num_examples=70, num_calibration=30, thresholds=thresholds)
    table = abstention.thresholds(SimpleNamespace(scale=0.5, tuning=tuning))
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns == {
        "goal": ["risk 0.05", "coverage 0.9"],
        "lowest score": ["0.875", "-"],
        "coverage": ["0.625", "0.000"],
        "risk": ["0.040", "-"],
    }
    assert "Scale 0.5, temperature 1.25, chosen on 70 examples; thresholds calibrated on them by cross-fitting" in table.title


@pytest.mark.parametrize(("level", "promised"), [(0.8, 0.8), (0.0, None)])
def test_the_risk_is_promised_at_the_level_that_was_asked_for(abstention, base_folder, tmp_path, monkeypatch, level, promised):
    # Red for: a level that is dropped, or 0 handed on, which is no probability; settings of another goal or seed.
    asked = {}
    posterior = SimpleNamespace(save_pretrained=lambda folder: None)
    monkeypatch.setattr(abstention, "tune", lambda posterior, model, data, **settings: asked.update(settings) or posterior)
    monkeypatch.setattr(abstention, "SwagCallback", lambda: SimpleNamespace(posterior=posterior))
    monkeypatch.setattr(abstention, "train", lambda *arguments, **named: SimpleNamespace(model=torch.nn.Identity()))
    options = f"--model {base_folder} --risk 0.25 --risk-level {level} --seed 3 --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["abstention.py", *options.split()])
    task = abstention.read_task(str(DATA))
    assert abstention.tuned_posterior(task, abstention.parse_arguments()) is posterior
    expected = {
        "risks": [0.25],
        "confidence": promised,
        "levels": [abstention.LEVEL],
        "sampling": abstention.Sampling(seed=3),
        "split": "validation",
    }
    assert {name: asked[name] for name in expected} == expected


@pytest.mark.filterwarnings("ignore:On .* examples of:UserWarning")
def test_the_example_prints_what_the_saved_pipeline_does(abstention, base_folder, tmp_path, monkeypatch, capsys):
    # Red for: metrics of an untuned pipeline, of the validation split, or of another goal than the sentence names.
    base = headless_base(base_folder, tmp_path / "base")
    options = f"--model {base} --steps 12 --train-rows 40 --validation-rows 60 --test-rows 80 --risk 0.95 --risk-level 0 --output {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", ["abstention.py", *options.split()])
    monkeypatch.setattr(abstention.console, "width", 200)  # it read the terminal's when it was made
    abstention.main()
    shown = " ".join(capsys.readouterr().out.split())
    task = abstention.read_task(str(DATA)).subset(None, None, seed=0, test_rows=80)
    posterior = SwagPosterior.from_pretrained(tmp_path / "out")
    tuning = posterior.tuning
    assert (tuning.dataset, tuning.split, tuning.num_calibration) == ("support.jsonl", "validation", 60)
    classify = pipeline("swag-text-classification", model=str(tmp_path / "out"), batch_size=32)
    predictions = classify(task.texts["test"])
    threshold = next(each.threshold for each in posterior.tuning.thresholds if (each.goal, each.target) == ("coverage", 0.9))
    coverage = np.mean([each["score"] >= threshold for each in predictions])
    assert f"coverage 0.9: coverage {coverage:.3f}," in shown
    assert "risk 0.95: coverage" in shown and "of the out-of-distribution examples" in shown
    assert "Sets at level 0.9 hold the true label" in shown
