"""Calibration metrics: reliability bins, expected, maximum, classwise and adaptive calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from swag_trainer.metrics.checks import checked

Scheme = Literal["uniform", "quantile"]
Norm = Literal["l1", "l2", "max"]

_CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class ReliabilityBins:
    """Examples grouped by the probability of the predicted class, or of one given class.

    Attributes:
        edges: Borders of the bins, the first 0 and the last 1. Shape (B + 1,).
        counts: Examples in each bin. Shape (B,).
        confidence: Mean probability of the predicted class in each bin; NaN in an empty one. Shape (B,).
        accuracy: Fraction of correct predictions in each bin; NaN in an empty one. Shape (B,).
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def accuracy_low(self) -> np.ndarray:
        """Lower limit of the accuracy's 95 % confidence interval (Wilson 1927, score interval); NaN in an empty bin. Shape (B,)."""
        return self._limits[0]

    @property
    def accuracy_high(self) -> np.ndarray:
        """Upper limit of the accuracy's 95 % confidence interval (Wilson 1927, score interval); NaN in an empty bin. Shape (B,)."""
        return self._limits[1]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean distance of accuracy and confidence, weighted by the counts."""
        return self.error("l1")

    def error(self, norm: Norm = "l1", *, debiased: bool = False) -> float:
        """Return one number for how far accuracy and confidence are apart; see `expected_calibration_error`."""
        if norm not in ("l1", "l2", "max"):
            raise ValueError(f"The norm of a calibration error is 'l1', 'l2' or 'max', got {norm!r}.")
        if debiased and norm != "l2":
            raise ValueError(f"Only the calibration error of norm 'l2' can be debiased, got {norm!r}.")
        filled = self.counts > 0
        counts, accuracy = self.counts[filled], self.accuracy[filled]
        gaps = np.abs(accuracy - self.confidence[filled])
        if norm == "max":
            return float(gaps.max())
        fraction = counts / counts.sum()
        if norm == "l1":
            return float((fraction * gaps).sum())
        squares = gaps**2
        if debiased:
            # The noise of a single example cannot be estimated; its bin counts as calibrated, as in the authors' package.
            squares = np.where(counts > 1, squares - accuracy * (1 - accuracy) / np.maximum(counts - 1, 1), 0.0)
        return float(np.sqrt(max((fraction * squares).sum(), 0.0)))

    @cached_property
    def _limits(self) -> np.ndarray:
        """Return the limits of every bin's accuracy. Shape (2, B)."""
        limits = np.full((2, len(self.counts)), np.nan)
        for index in np.flatnonzero(self.counts):
            count = int(self.counts[index])
            correct = round(float(self.accuracy[index]) * count)
            limits[:, index] = binomtest(correct, count).proportion_ci(_CONFIDENCE, method="wilson")
        return limits


def reliability_bins(
    probabilities: ArrayLike, labels: ArrayLike, *, num_bins: int = 15, scheme: Scheme = "uniform"
) -> ReliabilityBins:
    """Group examples by the probability of the predicted class.

    As in Guo et al. 2017, arXiv:1706.04599, eq. (2): a bin includes its upper border, not its lower one.

    Args:
        probabilities: Shape (N, C), rows sum to 1.
        labels: True classes. Shape (N,).
        num_bins: How many bins.
        scheme: "uniform" for bins of equal width, "quantile" for bins of about as many examples each, between quantiles of the probabilities.
            Equal probabilities always share a bin, so ties make some bins fuller and leave others empty.

    Raises:
        ValueError: No examples, or probabilities and labels that cannot be (`swag_trainer.metrics.checks.checked`).
    """
    probabilities, labels = checked(probabilities, labels)
    correct = probabilities.argmax(axis=1) == labels
    return _grouped(probabilities.max(axis=1), correct, num_bins, scheme)


def expected_calibration_error(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    num_bins: int = 15,
    scheme: Scheme = "uniform",
    norm: Norm = "l1",
    debiased: bool = False,
) -> float:
    """Return the top-label calibration error: how far apart accuracy and confidence are, over the bins of `reliability_bins`.

    With fraction n_b / N, accuracy a_b and mean confidence c_b of bin b:

        l1       sum_b n_b / N |a_b - c_b|                                        Guo et al. 2017, eq. (3)
        l2       sqrt( sum_b n_b / N (a_b - c_b)^2 )                              Kumar et al. 2019, arXiv:1909.10155, section 5
        l2, debiased   the same with a_b (1 - a_b) / (n_b - 1) taken off each square, not below 0        ibid., section 5
        max      max_b |a_b - c_b|, over the bins that are not empty              Guo et al. 2017, eq. (5)

    The plain errors are too large for few examples, since the noise of a_b counts as miscalibration; the debiased one is not.

    Args:
        probabilities: As in `reliability_bins`, like ``labels``, ``num_bins`` and ``scheme``, and the errors.
        labels: Shape (N,).
        num_bins: How many bins.
        scheme: "uniform" or "quantile".
        norm: "l1", "l2" or "max".
        debiased: Take off the noise of the accuracies; with "l2" only.
    """
    return reliability_bins(probabilities, labels, num_bins=num_bins, scheme=scheme).error(norm, debiased=debiased)


def maximum_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, num_bins: int = 15, scheme: Scheme = "uniform"
) -> float:
    """Return the largest distance of accuracy and confidence in a bin: `expected_calibration_error` of norm "max"."""
    return expected_calibration_error(probabilities, labels, num_bins=num_bins, scheme=scheme, norm="max")


def classwise_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, num_bins: int = 15, scheme: Scheme = "uniform"
) -> float:
    """Return the calibration error of each class's own probability against its own frequency, averaged over the classes.

    Classwise-ECE of Kull et al. 2019, arXiv:1910.12656, section 2; with "uniform" also the static calibration error of Nixon et al. 2019,
    arXiv:1904.01685: 1/C sum_c sum_b n_bc / N |fraction of class c in bin b - mean probability of class c in bin b|.

    Args:
        probabilities: As in `reliability_bins`, like the other arguments and the errors.
        labels: Shape (N,).
        num_bins: How many bins for each class.
        scheme: "uniform" or "quantile".
    """
    probabilities, labels = checked(probabilities, labels)
    errors = [
        _grouped(column, labels == index, num_bins, scheme).calibration_error for index, column in enumerate(probabilities.T)
    ]
    return float(np.mean(errors))


def adaptive_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, num_bins: int = 15) -> float:
    """Return the calibration error over ranges with equally many examples, class by class.

    ACE of Nixon et al. 2019, arXiv:1904.01685: 1/(C R) sum_c sum_r |acc(r, c) - conf(r, c)|. Ranges of unequal counts, which ties and
    an N that R does not divide make, are weighted by their counts rather than by 1/R.
    """
    return classwise_calibration_error(probabilities, labels, num_bins=num_bins, scheme="quantile")


def _grouped(confidence: np.ndarray, correct: np.ndarray, num_bins: int, scheme: Scheme) -> ReliabilityBins:
    """Group a probability for each example, shape (N,), and whether the event came true, shape (N,)."""
    edges = bin_edges(confidence, num_bins, scheme)
    bins = np.searchsorted(edges[1:-1], confidence, side="left")
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bins, weights=confidence, minlength=num_bins) / counts
        accuracy = np.bincount(bins, weights=correct, minlength=num_bins) / counts
    return ReliabilityBins(edges, counts, mean_confidence, accuracy)


def bin_edges(confidence: np.ndarray, num_bins: int, scheme: Scheme) -> np.ndarray:
    """Return the borders of bins of equal width or of equal counts, the first 0 and the last 1. Shape (num_bins + 1,)."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    if scheme == "quantile":
        # Quantiles are cut down to the example below them, in whole numbers: rounding would push an example on a border over it.
        edges[1:-1] = np.sort(confidence)[np.arange(1, num_bins) * (len(confidence) - 1) // num_bins]
    elif scheme != "uniform":
        raise ValueError(f"The scheme of the bins is 'uniform' or 'quantile', got {scheme!r}.")
    return edges
