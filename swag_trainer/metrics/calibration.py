"""Do probabilities mean what they say? Reliability bins, the calibration error, and one temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


@dataclass(frozen=True, eq=False)
class ReliabilityBins:
    """Examples grouped by the probability of the predicted class.

    Attributes:
        edges: Borders of the bins, the first 0 and the last 1. Shape (B + 1,).
        counts: Examples in each bin. Shape (B,).
        confidence: Mean probability of the predicted class in each bin; NaN in an empty one. Shape (B,).
        accuracy: Share of correct predictions in each bin; NaN in an empty one. Shape (B,).
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean distance of accuracy and confidence, weighted by the counts."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((gaps * self.counts[filled]).sum() / self.counts.sum())


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int = 15) -> ReliabilityBins:
    """Group examples into bins of equal width by the probability of the predicted class.

    As in Guo et al. 2017, arXiv:1706.04599, eq. (2): a bin includes its upper border, not its lower one.

    Args:
        probabilities: Shape (N, C), rows sum to 1.
        labels: True classes. Shape (N,).
        num_bins: How many bins.

    Raises:
        ValueError: No examples, or shapes that do not fit.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"Probabilities of shape (N, C) and N labels are needed, got {probabilities.shape} and {labels.shape}."
        )
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bins, weights=confidence, minlength=num_bins) / counts
        accuracy = np.bincount(bins, weights=correct, minlength=num_bins) / counts
    return ReliabilityBins(edges, counts, mean_confidence, accuracy)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int = 15) -> float:
    """Return the top-label calibration error over bins of equal width; see `reliability_bins` for arguments and source."""
    return reliability_bins(probabilities, labels, num_bins=num_bins).calibration_error


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature T > 0 for which softmax(logits / T) has the lowest negative log-likelihood.

    Guo et al. 2017, arXiv:1706.04599, section 4.2. Fit it on validation data, never on the data it is judged on.

    Args:
        logits: Shape (N, C).
        labels: True classes. Shape (N,).
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)

    def nll(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(nll, bounds=(-4.0, 4.0), method="bounded").x))
