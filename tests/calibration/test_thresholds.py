import numpy as np
import pytest
from scipy.special import softmax

from swag_trainer.calibration.thresholds import calibrate_thresholds
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
