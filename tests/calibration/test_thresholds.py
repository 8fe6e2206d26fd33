import numpy as np
import pytest
from scipy.special import softmax

from swag_trainer.calibration.thresholds import (
    calibrate_quantiles,
    calibrate_thresholds,
    holds_every_label,
    possible_labels,
)
from swag_trainer.metrics.selective import threshold_for_risk


def rows_with_labels(count):
    generator = np.random.default_rng(0)
    probabilities = softmax(3 * generator.normal(size=(count, 3)), axis=1)
    labels = np.array([generator.choice(3, p=p) for p in probabilities])
    return probabilities, labels


@pytest.mark.parametrize("level", [None, 0.9])
def test_a_risk_is_promised_at_the_level_that_the_record_states(level):
    # Red for: a threshold of these rows alone, recorded as a promise.
    probabilities, labels = rows_with_labels(600)
    (record,) = calibrate_thresholds(probabilities, labels, risks=[0.1], confidence=level, coverages=[])
    scores, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    assert record.threshold == threshold_for_risk(scores, correct, 0.1, level=level)
    assert record.level == level
    assert record.threshold != threshold_for_risk(scores, correct, 0.1, level=0.9 if level is None else None)


def test_a_risk_out_of_reach_has_no_threshold_and_no_figures():
    # Red for: infinity, which is no JSON, or the risk of no rows.
    probabilities, labels = rows_with_labels(30)
    (record,) = calibrate_thresholds(probabilities, labels, risks=[0.01], confidence=0.9, coverages=[])
    assert (record.threshold, record.coverage, record.risk) == (None, 0.0, None)


def test_a_choice_that_a_question_does_not_have_is_in_no_set():
    # Red for: sets of five choices for questions with three or four, and sets of all their choices that are not told.
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(40, 5))
    logits[::2, 3:], logits[1::2, 4:] = -708, -708  # as log_probabilities floors them
    probabilities, labels = softmax(logits, axis=1), generator.integers(0, 3, size=40)
    assert possible_labels(probabilities).sum() == 20 * 3 + 20 * 4
    for record in calibrate_quantiles(probabilities, labels, [0.5, 0.98]):
        assert record.mean_size <= 3.5 and holds_every_label(record, 3.5) == (record.mean_size == 3.5) == (record.level == 0.98)
