import sys
from pathlib import Path

import numpy as np
import pytest
from headless import headless_base
from transformers import pipeline

from swag_trainer import SwagPosterior

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def abstention(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import abstention

    # What it silences would stay silent for the tests after this one.
    monkeypatch.setattr(abstention, "quiet_libraries", lambda: None)
    return abstention


def test_risk_and_coverage_are_counted_over_the_right_rows(abstention):
    # Red for: wrong answers divided by all rows, an abstention counted as wrong, its top label forgotten.
    texts = {"test": ["a", "b", "c", "d"]}
    task = abstention.TextTask("t", ["x", "y"], texts, {"test": np.array([0, 0, 1, 1])}, [])
    answers = [{"label": "x"}, {"label": "y"}, {"label": None, "top_label": "y"}, {"label": None, "top_label": "x"}]
    assert abstention.measured_abstention(answers, task) == {"coverage": 0.5, "risk": 0.5, "risk_of_all": 0.5}
    answers[3]["top_label"] = "y"
    assert abstention.measured_abstention(answers, task)["risk_of_all"] == 0.25


@pytest.mark.filterwarnings("ignore:On .* rows of:UserWarning")
def test_the_example_prints_what_the_saved_pipeline_does(abstention, base_folder, tmp_path, monkeypatch, capsys):
    # Red for: figures of an untuned pipeline, of the validation split, or of another goal than the sentence names.
    base = headless_base(base_folder, tmp_path / "base")
    options = (
        f"--model {base} --steps 12 --train-rows 40 --validation-rows 60 --risk 0.95 --risk-level 0 --output {tmp_path / 'out'}"
    )
    monkeypatch.setattr(sys, "argv", ["abstention.py", *options.split()])
    monkeypatch.setenv("COLUMNS", "200")
    abstention.main()
    said = " ".join(capsys.readouterr().out.split())
    task = abstention.read_task(str(abstention.DATA))
    posterior = SwagPosterior.from_pretrained(tmp_path / "out")
    assert (posterior.tuning.dataset, posterior.tuning.num_calibration) == ("support.jsonl", 30)
    answers = pipeline("swag-text-classification", model=str(tmp_path / "out"))(task.texts["test"])
    threshold = next(each.threshold for each in posterior.tuning.thresholds if (each.goal, each.target) == ("coverage", 0.9))
    share = np.mean([answer["score"] >= threshold for answer in answers])
    assert f"coverage 0.9: answered {share:.3f} of the rows" in said
    assert "risk 0.95: answered" in said and "of the foreign rows" in said
    assert "Sets that should hold the true label 0.9 of the time hold it" in said
