import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from swag_trainer.metrics.calibration import expected_calibration_error, fit_temperature, reliability_bins


def random_task(seed, rows=400, classes=4):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, classes)) * 2
    labels = np.array([generator.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return logits, labels


def slow_error(probabilities, labels, num_bins):
    total = 0.0
    for index in range(num_bins):
        low, high = index / num_bins, (index + 1) / num_bins
        chosen = [row for row, p in enumerate(probabilities) if low < p.max() <= high]
        if chosen:
            accuracy = np.mean([probabilities[row].argmax() == labels[row] for row in chosen])
            confidence = np.mean([probabilities[row].max() for row in chosen])
            total += len(chosen) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_the_definition(num_bins):
    # Red for: unweighted bins, the mean over classes, a bin's middle taken for its confidence.
    for seed in range(20):
        logits, labels = random_task(seed)
        probabilities = softmax(logits * 1.7, axis=1)
        ours = expected_calibration_error(probabilities, labels, num_bins=num_bins)
        assert ours == pytest.approx(slow_error(probabilities, labels, num_bins), abs=1e-12)


def test_a_border_belongs_to_the_bin_below_it():
    # Red for: intervals closed on the left, which put a certain answer into a bin of its own beyond the last.
    bins = reliability_bins(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]), num_bins=2)
    assert bins.counts.tolist() == [1, 1]
    assert bins.confidence.tolist() == [0.5, 1.0]


def test_empty_bins_have_no_accuracy_and_no_weight():
    # Red for: an empty bin counted as an error of its confidence.
    bins = reliability_bins(np.array([[0.9, 0.1]] * 10), np.array([0] * 9 + [1]), num_bins=5)
    assert np.isnan(bins.accuracy[:4]).all()
    assert bins.calibration_error == pytest.approx(0.0)


def test_the_fitted_temperature_undoes_a_scaling_of_the_logits():
    # Red for: logits multiplied by the temperature, or its logarithm returned.
    logits, labels = random_task(0, rows=4000)
    once = fit_temperature(logits, labels)
    assert once == pytest.approx(1.0, abs=0.1)  # the labels were drawn from these very probabilities
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * once, rel=1e-3)


def test_no_other_temperature_is_better():
    # Red for: a search that stops early, or one that minimises something else.
    logits, labels = random_task(1)
    best = fit_temperature(2.5 * logits, labels)
    losses = [log_loss(labels, softmax(2.5 * logits / (best * factor), axis=1)) for factor in (0.98, 1.0, 1.02)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize(
    ("probabilities", "labels"), [(np.zeros((0, 2)), np.zeros(0)), (np.zeros((3, 2)), np.zeros(2)), (np.zeros(3), np.zeros(3))]
)
def test_shapes_that_do_not_fit_are_refused(probabilities, labels):
    # Red for: broadcasting, or a mean of nothing.
    with pytest.raises(ValueError, match="needed, got"):
        reliability_bins(probabilities, labels)
