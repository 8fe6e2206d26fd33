"""What a notebook and a table show of predictions, posteriors and tunings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import LABELS

from swag_trainer import MonteCarloPredictor, SwagCallback
from swag_trainer.posterior.tuning import CalibratedThreshold, ConformalQuantile, Tuning
from swag_trainer.prediction.predictive import Predictive, RegressionPredictive

HOSTILE = "<script>alert(1)</script>"


def some_predictive(**changes):
    logits = 2 * torch.randn(4, 12, 3, generator=torch.Generator().manual_seed(0))
    return replace(Predictive.from_logits(logits, "softmax", keep_draws=True), **{"labels": tuple(LABELS), **changes})


def test_one_event_is_a_row_of_the_pipeline_and_several_are_a_predictive():
    # Red for: an index into the classes, a slice that forgets labels or draws, an iteration without an end.
    whole = some_predictive()
    row = whole[-1]
    assert list(row) == ["label", "score", "entropy", "mutual_information"]
    assert row["label"] == LABELS[whole.probabilities[11].argmax()] and row["score"] == whole.probabilities[11].max()
    for some in (whole[2:5], whole[[2, 3, 4]], whole[np.isin(np.arange(12), [2, 3, 4])]):
        assert len(some) == 3 and some.labels == whole.labels and some.draw_probabilities.shape == (4, 3, 3)
        np.testing.assert_array_equal(some.probabilities, whole.probabilities[2:5])
    assert [each["score"] for each in whole] == whole.probabilities.max(axis=1).tolist()
    with pytest.raises(IndexError):
        whole[12]
    assert replace(whole, labels=None)[0]["label"] in (0, 1, 2)


def test_batches_put_together_keep_the_labels():
    # Red for: names of classes that are joined as if they were arrays of events.
    parts = [some_predictive()[:5], some_predictive()[5:]]
    assert Predictive.from_batches(parts, range(12)).labels == tuple(LABELS)


def test_a_predictive_prints_sizes_and_means_and_its_table_runs_no_label():
    # Red for: a page of numbers, or a label that becomes an element of the notebook.
    whole = some_predictive(labels=(HOSTILE, "b", "c"))
    assert repr(whole) == (
        f"Predictive(12 events, 3 classes, 4 draws; means: score {whole.probabilities.max(1).mean():.3g}, "
        f"entropy {whole.entropy.mean():.3g}, mutual_information {whole.mutual_information.mean():.3g})"
    )
    table = whole._repr_html_()
    assert HOSTILE not in table and "&lt;script&gt;" in table
    assert table.count("<tr>") == 11 and "and 2 more" in table
    assert len(repr(whole[:0])) < 200 and "<table>" in whole[:0]._repr_html_()


def test_predictions_become_tables_of_pandas():
    # Red for: columns in another order than their names, or probabilities of other classes.
    whole = some_predictive()
    frame = whole.to_pandas(probabilities=True)
    assert list(frame.columns) == ["label", "score", "entropy", "mutual_information", *(f"p({label})" for label in LABELS)]
    np.testing.assert_array_equal(frame.iloc[:, 4:].to_numpy(), whole.probabilities)
    assert list(whole.to_pandas().columns) == ["label", "score", "entropy", "mutual_information"]
    regression = RegressionPredictive.from_outputs(torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(0)))
    assert regression.to_pandas()["mean"].tolist() == regression.mean[:, 0].tolist() and set(regression[2]) == {"mean", "std"}
    assert repr(regression).startswith("RegressionPredictive(5 events, 1 outputs, 4 draws; means: mean ")


def test_what_a_run_made_says_what_it_is(trained, rows):
    # Red for: the address of an object in memory, a state that is not the run's, labels that a prediction lacks.
    trainer, swag = trained
    assert repr(SwagCallback()).endswith("rank=20, learning_rate='hold': not begun)")
    assert f"rank=5, learning_rate='hold': {swag.num_collected} snapshots, finished)" in repr(swag)
    predictor = MonteCarloPredictor(trainer.model, swag.posterior, num_samples=4, seed=3, progress=False)
    assert repr(predictor) == (
        "MonteCarloPredictor(SWAG, 4 matched draws, seed 3, scale 1, around the mean, temperature 1, task 'swag-text-classification')"
    )
    assert "one pass" in repr(MonteCarloPredictor(trainer.model, swag.posterior, scale=0))
    predicted = predictor.predict(rows)
    assert predicted.labels == tuple(LABELS) and predicted[0]["label"] in LABELS


def test_a_tuning_prints_its_choice_in_a_line_and_its_calibration_in_lines():
    # Red for: a page of candidates, or a threshold that was not found printed as a number.
    tuning = Tuning(
        temperature=1.25,
        dataset="me/questions",
        num_examples=60,
        num_calibration=60,
        num_samples=4,
        seed=3,
        nll=0.5,
        num_folds=5,
        baselines={"SWA": 0.6},
        thresholds=[CalibratedThreshold("risk", 0.01, None, 0.0, None), CalibratedThreshold("coverage", 0.9, 0.4, 0.9, 0.1)],
        conformal=[ConformalQuantile("lac", 0.9, 0.5, 1.25)],
    )
    assert repr(tuning) == "Tuning(center='mean', temperature=1.25, nll=0.5, dataset='me/questions', num_calibration=60)"
    assert str(tuning).splitlines() == [
        "Tuning on 60 examples of 'me/questions': 4 draws around the mean, temperature 1.250",
        "  NLL 0.5000 (cross-fitted); SWA 0.6000",
        "  risk 0.01: no threshold",
        "  coverage 0.9: score >= 0.400, coverage 0.90",
        "  lac sets for 0.9: 1.25 labels on average",
    ]
    assert "60 examples of 'me/questions': one pass at the mean, " in str(replace(tuning, relative_energy=0.0))
