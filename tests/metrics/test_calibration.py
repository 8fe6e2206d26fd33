import functools
import warnings

import numpy as np
import pytest
from probability_cases import equal_mass, filled_bins, probability_cases
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from swag_trainer.metrics.calibration import (
    adaptive_calibration_error,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
)


def random_task(seed, rows=400, classes=4):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, classes)) * 2
    labels = np.array([generator.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return logits, labels


def slow_error(confidence, correct, edges, norm="l1"):
    bins = [(b.sum(), confidence[b].mean(), correct[b].mean()) for b in filled_bins(confidence, edges)]
    total = sum(count for count, _, _ in bins)
    if norm == "max":
        return max(abs(a - c) for _, c, a in bins)
    if norm == "l1":
        return sum(n / total * abs(a - c) for n, c, a in bins)
    squares = [(n, (a - c) ** 2, a * (1 - a)) for n, c, a in bins]
    if norm == "debiased":
        squares = [(n, square - noise / (n - 1) if n > 1 else 0, noise) for n, square, noise in squares]
    return max(sum(n / total * square for n, square, _ in squares), 0) ** 0.5


def test_the_cases_hold_what_a_metric_may_stumble_over():
    # Red for: random cases that no longer have what the tests here are to try.
    cases = list(probability_cases(1000))
    tops = [probabilities.max(axis=1) for probabilities, _ in cases]
    found = {
        "one row": sum(len(labels) == 1 for _, labels in cases),
        "ties": sum(len(set(top.tolist())) < len(top) for top in tops),
        "one class": sum(len(labels) > 1 and len(set(labels.tolist())) == 1 for _, labels in cases),
        "constant": sum(len(rows) > 4 and (rows == rows[0]).all() for rows, _ in cases),
        "perfect": sum(len(rows) > 4 and (rows[np.arange(len(rows)), labels] == 1).all() for rows, labels in cases),
        "all wrong": sum(len(rows) > 4 and (rows[np.arange(len(rows)), labels] == 0).all() for rows, labels in cases),
        "empty bins": sum((reliability_bins(*case, num_bins=10).counts == 0).any() for case in cases),
        "a bin of one": sum((reliability_bins(*case, num_bins=10).counts == 1).any() for case in cases),
    }
    assert min(found.values()) >= 30, found


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_the_calibration_errors_are_those_of_the_definitions(num_bins):
    # Red for: unweighted bins, the mean over classes, a bin's middle taken for its confidence, n for n - 1, a square left unrooted.
    width = [index / num_bins for index in range(num_bins + 1)]
    for probabilities, labels in probability_cases(1000):
        confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        for scheme, edges in (("uniform", width), ("quantile", equal_mass(confidence, num_bins))):
            bins = reliability_bins(probabilities, labels, num_bins=num_bins, scheme=scheme)
            for norm in ("l1", "l2", "max"):
                assert bins.error(norm) == pytest.approx(slow_error(confidence, correct, edges, norm), abs=1e-9)
            # The root of what is left of a difference of squares of rounding size.
            debiased = slow_error(confidence, correct, edges, "debiased")
            assert bins.error("l2", debiased=True) == pytest.approx(debiased, abs=1e-6)


@pytest.mark.parametrize("scheme", ["uniform", "quantile"])
def test_each_error_by_its_name_is_that_of_the_bins(scheme):
    # Red for: a scheme, a number of bins, a norm or the debiasing that is left out on the way, or the mean in place of the worst bin.
    for probabilities, labels in probability_cases(1000):
        confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        edges = equal_mass(confidence, 6) if scheme == "quantile" else [index / 6 for index in range(7)]
        options = {"num_bins": 6, "scheme": scheme}
        plain, worst = (slow_error(confidence, correct, edges, norm) for norm in ("l1", "max"))
        assert expected_calibration_error(probabilities, labels, **options) == pytest.approx(plain, abs=1e-9)
        assert maximum_calibration_error(probabilities, labels, **options) == pytest.approx(worst, abs=1e-9)
        debiased = expected_calibration_error(probabilities, labels, norm="l2", debiased=True, **options)
        assert debiased == pytest.approx(slow_error(confidence, correct, edges, "debiased"), abs=1e-6)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_the_calibration_error_is_that_of_torchmetrics(norm):
    # Red for: another norm, or another top label.
    torch, theirs = (
        pytest.importorskip("torch"),
        pytest.importorskip("torchmetrics.functional.classification.calibration_error"),
    )
    for probabilities, labels in probability_cases(1000, inside=True):
        # Its public function casts to float32 first, and the sums of 70 equal numbers are then off by 1e-6 themselves.
        confidence, answers = torch.tensor(probabilities).max(dim=1)
        expected = theirs._ce_compute(confidence, answers == torch.tensor(labels), 15, norm=norm)
        assert expected_calibration_error(probabilities, labels, norm=norm) == pytest.approx(float(expected), abs=1e-9)
        public = theirs.multiclass_calibration_error(
            torch.tensor(probabilities), torch.tensor(labels), probabilities.shape[1], n_bins=15, norm=norm, validate_args=False
        )
        assert expected_calibration_error(probabilities, labels, norm=norm) == pytest.approx(float(public), abs=5e-6)


def test_torchmetrics_gives_certain_answers_a_bin_of_their_own():
    # Where ours and theirs are known to differ: their bins include the lower border, so that 1.0 falls beyond the last bin.
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.functional.classification")
    probabilities, labels = np.array([[1.0, 0.0], [0.96, 0.04]]), np.array([1, 0])
    theirs = functional.multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 2, n_bins=15)
    assert float(theirs) == pytest.approx(0.5 * 1.0 + 0.5 * 0.04)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.98 - 0.5)


@pytest.mark.parametrize("scheme", ["uniform", "quantile"])
def test_bins_are_those_of_scikit_learn(scheme):
    # Red for: quantiles of other shares, a border in the bin above it, rows counted out by rank, so that ties are torn apart.
    for probabilities, labels in probability_cases(1000):
        correct = probabilities.argmax(axis=1) == labels
        bins = reliability_bins(probabilities, labels, num_bins=10, scheme=scheme)
        share, confidence = calibration_curve(correct, probabilities.max(axis=1), n_bins=10, strategy=scheme, pos_label=True)
        filled = bins.counts > 0
        np.testing.assert_allclose(bins.accuracy[filled], share, atol=1e-9)
        np.testing.assert_allclose(bins.confidence[filled], confidence, atol=1e-9)
        assert bins.edges[0] == 0 and bins.edges[-1] == 1 and bins.counts.sum() == len(labels)


def test_classwise_and_adaptive_errors_are_those_of_the_definitions():
    # Red for: the sum over the classes, the top label's probability for each class, quantiles of all classes together.
    for probabilities, labels in probability_cases(1000):
        classes = range(probabilities.shape[1])
        width = [slow_error(probabilities[:, c], labels == c, [b / 7 for b in range(8)]) for c in classes]
        mass = [slow_error(probabilities[:, c], labels == c, equal_mass(probabilities[:, c], 7)) for c in classes]
        ours = classwise_calibration_error(probabilities, labels, num_bins=7)
        assert ours == pytest.approx(np.mean(width), abs=1e-9)
        ours = adaptive_calibration_error(probabilities, labels, num_bins=7)
        assert ours == pytest.approx(np.mean(mass), abs=1e-9)


def test_ranges_of_equal_mass_have_equal_counts():
    # Red for: equal widths under another name; the definition of Nixon et al. weights every range with 1 / R.
    probabilities, labels = softmax(random_task(0)[0], axis=1), random_task(0)[1]
    bins = reliability_bins(probabilities, labels, num_bins=8, scheme="quantile")
    assert bins.counts.tolist() == [50] * 8
    assert bins.calibration_error == pytest.approx(np.abs(bins.accuracy - bins.confidence).mean())


def test_the_debiased_error_of_calibrated_answers_is_nearer_to_zero():
    # Red for: noise added instead of taken off.
    plain, debiased = [], []
    for seed in range(40):
        logits, labels = random_task(seed, rows=300)
        probabilities = softmax(logits, axis=1)
        plain.append(expected_calibration_error(probabilities, labels, norm="l2"))
        debiased.append(expected_calibration_error(probabilities, labels, norm="l2", debiased=True))
    assert np.mean(plain) > 0.06 and np.mean(debiased) < 0.5 * np.mean(plain)


def test_the_maximum_is_that_of_the_worst_bin():
    # Red for: an empty bin, or the mean.
    probabilities, labels = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]), np.array([0, 0, 1])
    assert maximum_calibration_error(probabilities, labels, num_bins=5) == pytest.approx(0.6)


@functools.cache
def wilson_limits(successes, count):
    limits = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    return limits.low, limits.high


def test_confidence_limits_are_wilsons():
    # Red for: Wald's limits, which are 1 and 1 where every answer is right; a 90 % level; limits of an empty bin.
    for probabilities, labels in probability_cases(1000):
        bins = reliability_bins(probabilities, labels, num_bins=6)
        for index, count in enumerate(bins.counts):
            if count == 0:
                assert np.isnan(bins.accuracy_low[index]) and np.isnan(bins.accuracy_high[index])
                continue
            successes = int(round(bins.accuracy[index] * count))
            low, high = wilson_limits(successes, int(count))
            assert bins.accuracy_low[index] == pytest.approx(low, abs=1e-9)
            assert bins.accuracy_high[index] == pytest.approx(high, abs=1e-9)


def test_a_border_belongs_to_the_bin_below_it():
    # Red for: intervals closed on the left, which put a certain answer into a bin of its own beyond the last.
    bins = reliability_bins(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]), num_bins=2)
    assert bins.counts.tolist() == [1, 1]
    assert bins.confidence.tolist() == [0.5, 1.0]


def test_empty_bins_have_no_accuracy_and_no_weight():
    # Red for: an empty bin counted as an error of its confidence, or a warning about it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bins = reliability_bins(np.array([[0.9, 0.1]] * 10), np.array([0] * 9 + [1]), num_bins=5)
        assert np.isnan(bins.accuracy[:4]).all() and np.isnan(bins.accuracy_low[:4]).all()
    assert bins.calibration_error == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bins": 0}, "num_bins"),
        ({"scheme": "equal"}, "'uniform' or 'quantile'"),
        ({"norm": "l3"}, "'l1', 'l2' or 'max'"),
        ({"norm": "l1", "debiased": True}, "debiased"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    # Red for: an option that is ignored, so that a plain error is reported as a debiased one.
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(np.array([[0.9, 0.1]]), np.array([0]), **options)


@pytest.mark.parametrize(
    ("probabilities", "labels"), [(np.zeros((0, 2)), np.zeros(0)), (np.zeros((3, 2)), np.zeros(2)), (np.zeros(3), np.zeros(3))]
)
def test_shapes_that_do_not_fit_are_refused(probabilities, labels):
    # Red for: broadcasting, or a mean of nothing.
    with pytest.raises(ValueError, match="needed, got"):
        reliability_bins(probabilities, labels)
