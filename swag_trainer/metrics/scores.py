"""Proper scoring rules (NLL, Brier score and its decomposition), accuracy, F1 and Matthews correlation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from swag_trainer.metrics.calibration import Scheme, bin_edges
from swag_trainer.metrics.checks import checked

# scikit-learn's log_loss clips here too, so that one class of probability 0 that comes true does not make the mean infinite.
_SMALLEST_LOG = float(np.log(np.finfo(np.float64).eps))


@dataclass(frozen=True)
class BrierDecomposition:
    """The Brier score in parts, each summed over the classes.

    Attributes:
        reliability: How far the mean probability of a bin is from the fraction that came true; 0 is best.
        resolution: How far the fractions of the bins are from the fraction of all; more is better.
        uncertainty: Variance of the labels themselves, which no method can change.
        remainder: What probabilities that differ within a bin add: their variance less twice their covariance with the labels; may be
            negative, and is 0 where a bin holds one probability only.
    """

    reliability: float
    resolution: float
    uncertainty: float
    remainder: float

    @property
    def score(self) -> float:
        """The Brier score: reliability - resolution + uncertainty + remainder."""
        return self.reliability - self.resolution + self.uncertainty + self.remainder


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of -log(probability of the true class), in nats.

    Probabilities below 2.2e-16, float64's own resolution at 1, count as that, as in scikit-learn's ``log_loss``: see `mean_nll`.

    Args:
        probabilities: Rows sum to 1. Shape (N, C).
        labels: True classes, from 0 to C - 1. Shape (N,).

    Raises:
        ValueError: What `swag_trainer.metrics.checks.checked` refuses, here and in the functions below.
    """
    return float(log_losses(*checked(probabilities, labels)).mean())


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return -log(probability of the true class) of each example, in nats, as in `negative_log_likelihood`. Shape (N,).

    Args:
        probabilities, labels: Checked, of shapes (N, C) and (N,).
    """
    return _losses(log_probabilities(probabilities[np.arange(len(labels)), labels]))


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Return logarithms that a softmax and a temperature take as logits: a softmax is the same whatever is added to all classes.

    Never below -708, the logarithm of the smallest float64 number that has all its digits, which keeps 0 from becoming minus infinity.
    """
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))


def mean_nll(log_likelihood: np.ndarray) -> float:
    """Return the mean of -log(probability of the true class), in nats, of which one example costs at most 36.04.

    A probability below 2.2e-16 counts as 2.2e-16: a prediction that is more certain than that, and wrong, costs no more. Every NLL of
    this package is floored so.

    Args:
        log_likelihood: Logarithm of the true class's probability; -inf for a probability of 0. Shape (N,).
    """
    return float(_losses(log_likelihood).mean())


def _losses(log_likelihood: np.ndarray) -> np.ndarray:
    return -np.maximum(log_likelihood, _SMALLEST_LOG)


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean squared distance of the probabilities and the true class, summed over the classes: from 0 to 2.

    Brier 1950, as he defined it; for two classes it is twice what many report for the second class alone.
    """
    probabilities, labels = checked(probabilities, labels)
    return float(((probabilities - _one_hot(labels, probabilities.shape[1])) ** 2).sum(axis=1).mean())


def brier_decomposition(
    probabilities: ArrayLike, labels: ArrayLike, *, num_bins: int = 15, scheme: Scheme = "uniform"
) -> BrierDecomposition:
    """Take the Brier score apart; the parts add up to it exactly, whatever the bins.

    Murphy 1973 for each class against the others, over bins of that class's probability, with the two parts within bins of Stephenson,
    Coelho and Jolliffe 2008 (doi:10.1175/2007WAF2006116.1) as one remainder. In a bin with mean probability c and fraction a of N examples:

        reliability  n/N (c - a)^2        resolution  n/N (a - fraction of all)^2
        remainder    1/N sum_i (p_i - c)^2 - 2/N sum_i (p_i - c)(y_i - a)

    Args:
        probabilities: Shape (N, C).
        labels: Shape (N,).
        num_bins: How many bins for each class.
        scheme: "uniform" or "quantile", as in `swag_trainer.metrics.calibration.reliability_bins`.
    """
    probabilities, labels = checked(probabilities, labels)
    outcomes = _one_hot(labels, probabilities.shape[1])
    parts = np.zeros(4)
    for column, outcome in zip(probabilities.T, outcomes.T, strict=True):
        bins = np.searchsorted(bin_edges(column, num_bins, scheme)[1:-1], column, side="left")
        counts = np.maximum(np.bincount(bins, minlength=num_bins), 1)
        # The means of an example's own bin, so that every part is a plain mean over the examples.
        confidence = (np.bincount(bins, weights=column, minlength=num_bins) / counts)[bins]
        fraction = (np.bincount(bins, weights=outcome, minlength=num_bins) / counts)[bins]
        frequency = outcome.mean()
        within = (column - confidence) ** 2 - 2 * (column - confidence) * (outcome - fraction)
        parts += [
            ((confidence - fraction) ** 2).mean(),
            ((fraction - frequency) ** 2).mean(),
            frequency * (1 - frequency),
            within.mean(),
        ]
    return BrierDecomposition(*map(float, parts))


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the fraction of examples whose most probable class is the true one; of equally probable classes the first counts."""
    probabilities, labels = checked(probabilities, labels)
    return float((probabilities.argmax(axis=1) == labels).mean())


def macro_f1(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the F1 of each class, averaged over the classes that are true or predicted somewhere.

    As scikit-learn's ``f1_score(average="macro")``, where a class that is never both has an F1 of 0.
    """
    confusion = _confusion(probabilities, labels)
    together = confusion.sum(axis=0) + confusion.sum(axis=1)
    seen = together > 0
    return float((2 * np.diag(confusion)[seen] / together[seen]).mean())


def matthews_correlation(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the correlation of predictions and labels, from -1 to 1; 0 where either is always the same class.

    For C classes: Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006, as in scikit-learn.
    """
    confusion = _confusion(probabilities, labels).astype(np.float64)
    total, true, predicted = confusion.sum(), confusion.sum(axis=1), confusion.sum(axis=0)
    spread = (total**2 - true @ true) * (total**2 - predicted @ predicted)
    return float((np.trace(confusion) * total - true @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[labels]


def _confusion(probabilities: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Count examples by true class (down) and predicted class (across). Shape (C, C)."""
    probabilities, labels = checked(probabilities, labels)
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(axis=1), minlength=classes**2).reshape(classes, classes)
