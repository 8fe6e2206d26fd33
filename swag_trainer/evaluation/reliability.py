"""Bins of a reliability diagram: of equal mass, and none with few examples."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from swag_trainer.metrics.calibration import ReliabilityBins, reliability_bins

FEWEST = 10  # a bin of fewer examples has an accuracy that is mostly chance
_EXAMPLES_PER_BIN = 15


class Bins(Protocol):
    """What a reliability diagram needs; `swag_trainer.metrics.calibration.ReliabilityBins` has it.

    Attributes:
        edges: Borders of the bins. Shape (B + 1,).
        counts: Examples in each bin. Shape (B,).
        confidence: Mean probability of the predicted class, of any value in an empty bin. Shape (B,).
        accuracy: Fraction of correct predictions, of any value in an empty bin. Shape (B,).
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def diagram_bins(probabilities: np.ndarray, labels: np.ndarray, *, most: int = 15) -> ReliabilityBins:
    """Group examples into bins of equal mass, at most ``most``, and so few that each holds about fifteen examples or more.

    Args:
        probabilities: Shape (N, C), rows sum to 1.
        labels: True classes. Shape (N,).
        most: How many bins at most.
    """
    num_bins = max(1, min(most, len(labels) // _EXAMPLES_PER_BIN))
    return reliability_bins(probabilities, labels, num_bins=num_bins, scheme="quantile")


def merged(bins: Bins, *, fewest: int = FEWEST) -> ReliabilityBins:
    """Join neighbouring bins until each has at least ``fewest`` examples; no bin is left where all have fewer together.

    >>> bins = ReliabilityBins(np.array([0, 0.5, 0.8, 1]), np.array([4, 0, 12]), np.array([0.4, np.nan, 0.9]), np.array([0.5, np.nan, 1]))
    >>> joined = merged(bins)
    >>> joined.counts.tolist(), joined.edges.tolist(), joined.accuracy.tolist()
    ([16], [0.0, 1.0], [0.875])
    """
    groups: list[list[int]] = [[]]
    for index in range(len(bins.counts)):
        groups[-1].append(index)
        if bins.counts[groups[-1]].sum() >= fewest:
            groups.append([])
    rest = groups.pop()
    if groups:
        groups[-1] += rest
    counts = np.array([bins.counts[group].sum() for group in groups], dtype=np.int64)
    # An empty bin has NaN for its means, and 0 times NaN is NaN.
    sums = {name: np.where(bins.counts > 0, getattr(bins, name), 0.0) * bins.counts for name in ("confidence", "accuracy")}
    means = {name: np.array([values[group].sum() for group in groups]) / counts for name, values in sums.items()}
    edges = np.array([bins.edges[0], *(bins.edges[group[-1] + 1] for group in groups)])
    return ReliabilityBins(edges, counts, **means)
