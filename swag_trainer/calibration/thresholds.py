"""Calibration of abstention thresholds and conformal quantiles on cross-fitted predictions.

The guarantees of both are for examples that chose nothing. Cross-fitted, each example chose nothing about its own prediction, but the
predictor in use was chosen on all: the guarantees hold approximately. In a simulation (benchmarks/cross_fitting.py) they held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from swag_trainer.metrics.conformal import ConformalMethod, ConformalSets, calibrate_conformal, calibrate_label_sets
from swag_trainer.metrics.selective import threshold_for_coverage, threshold_for_risk
from swag_trainer.posterior.tuning import CalibratedThreshold, ConformalQuantile
from swag_trainer.prediction.decisions import confidence as confidence_scores

CONFORMAL_METHODS: tuple[ConformalMethod, ...] = ("lac", "aps", "raps")


def calibrate_thresholds(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    risks: Sequence[float],
    confidence: float | None,
    coverages: Sequence[float],
) -> list[CalibratedThreshold]:
    """Return a threshold for each risk and each coverage, with the risk and the coverage measured at it.

    Args:
        probabilities: Averaged, of examples that chose nothing about them, see `cross_fitted`. Shape (N, C).
        labels: Their true classes. Shape (N,).
        risks: See `threshold_for_risk`.
        confidence: Its ``level``.
        coverages: See `threshold_for_coverage`.
    """
    scores, correct = confidence_scores(probabilities), probabilities.argmax(axis=1) == labels

    def record(goal: str, target: float, threshold: float, level: float | None) -> CalibratedThreshold:
        accepted = scores >= threshold
        return CalibratedThreshold(
            goal=goal,
            target=float(target),
            threshold=max(0.0, threshold) if math.isfinite(threshold) else None,
            coverage=float(accepted.mean()),
            risk=float((~correct[accepted]).mean()) if accepted.any() else None,
            level=level,
        )

    return [record("risk", risk, threshold_for_risk(scores, correct, risk, level=confidence), confidence) for risk in risks] + [
        record("coverage", coverage, threshold_for_coverage(scores, coverage), None) for coverage in coverages
    ]


def calibrate_quantiles(probabilities: np.ndarray, labels: np.ndarray, levels: Sequence[float]) -> list[ConformalQuantile]:
    """Return a quantile for each level and method, not randomised; arguments as in `calibrate_thresholds`."""
    return [
        _quantile(calibrate_conformal(probabilities, labels, level=level, method=method), probabilities)
        for level in levels
        for method in CONFORMAL_METHODS
    ]


def calibrate_label_quantiles(probabilities: np.ndarray, flags: np.ndarray, levels: Sequence[float]) -> list[ConformalQuantile]:
    """Return a quantile for each level, of sets that hold all right labels.

    Args:
        probabilities: Of each label. Shape (N, C).
        flags: Which labels are right, 0 or 1. Shape (N, C).
        levels: Fractions of the sets that shall hold all right labels.
    """
    return [_quantile(calibrate_label_sets(probabilities, flags, level=level), probabilities) for level in levels]


def _quantile(sets: ConformalSets, probabilities: np.ndarray) -> ConformalQuantile:
    return ConformalQuantile(
        method=sets.method,
        level=float(sets.level),
        quantile=sets.quantile if math.isfinite(sets.quantile) else None,
        mean_size=float((sets.sets(probabilities) & possible_labels(probabilities)).sum(axis=1).mean()),
        penalty=sets.penalty,
        regularised_rank=sets.regularised_rank,
    )


def possible_labels(probabilities: np.ndarray) -> np.ndarray:
    """Return which labels an example can have: not a choice that a question does not have, whose probability is 0 but for rounding."""
    return probabilities > np.finfo(np.float64).eps


def holds_every_label(record: ConformalQuantile, num_labels: float) -> bool:
    """Return whether every set of the calibration examples holds every label, which is no information.

    Args:
        record: The sets.
        num_labels: How many labels these examples can have, on average.
    """
    return record.quantile is None or record.mean_size >= num_labels
