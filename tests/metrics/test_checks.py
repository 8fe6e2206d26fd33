import numpy as np
import pytest

from swag_trainer import metrics
from swag_trainer.metrics.checks import checked

GOOD = np.array([[0.7, 0.3], [0.2, 0.8]])
METRICS = (
    metrics.accuracy,
    metrics.adaptive_calibration_error,
    metrics.brier_decomposition,
    metrics.brier_score,
    metrics.classwise_calibration_error,
    metrics.expected_calibration_error,
    metrics.macro_f1,
    metrics.matthews_correlation,
    metrics.maximum_calibration_error,
    metrics.negative_log_likelihood,
    metrics.reliability_bins,
)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.empty((0, 2)), [], "needed, got"),
        (np.empty((2, 0)), [0, 1], "needed, got"),
        (GOOD[:, 1], [0, 1], "column of each"),
        (GOOD, [0], "needed, got"),
        (GOOD, [[0, 1]], "needed, got"),
        (GOOD * [[1], [np.nan]], [0, 1], r"must be finite; 2 are not, the first at \(1, 0\)"),
        (GOOD + 0.01, [0, 1], "Row 0 sums to 1.02"),
        (np.array([[1.2, -0.2], [0.5, 0.5]]), [0, 1], "smallest number is -0.2"),
        (np.log(GOOD), [0, 1], "logits"),
        (GOOD, [0, 2], "from 0 to 1.*Row 1 has 2"),
        (GOOD, [-100, 1], "Row 0 has -100"),
        (GOOD, [0.5, 1], "whole numbers"),
        (GOOD, ["a", "b"], "numbers in 1 dimension"),
        (GOOD.astype(str), [0, 1], "numbers in 2 dimension"),
    ],
)
def test_what_cannot_be_is_refused_by_every_metric(metric, probabilities, labels, message):
    # Red for: a metric that skips the check: a label of -1 picks the last class, a NaN makes a NaN or a wrong argmax.
    with pytest.raises(ValueError, match=message):
        metric(probabilities, labels)


def test_what_can_be_is_taken_as_it_is():
    # Red for: rows rescaled on the way, float32 refused for its rounding, lists refused.
    single = GOOD.astype(np.float32)
    probabilities, labels = checked(single.tolist(), [0.0, 1.0])
    np.testing.assert_array_equal(probabilities, single.astype(np.float64))
    assert labels.dtype.kind == "i" and labels.tolist() == [0, 1]


def test_the_input_is_left_alone():
    # Red for: a clip in place.
    before = GOOD.copy()
    for metric in METRICS:
        metric(GOOD, np.array([0, 1]))
    np.testing.assert_array_equal(GOOD, before)
