"""Selective prediction (abstention): risk-coverage curves, AURC, AUGRC, and thresholds for a risk or a coverage.

An example is *accepted* when its confidence is at or above a threshold. *Coverage* is the fraction of examples that are accepted, *risk*
the fraction of wrong predictions among those. Examples of equal confidence are accepted together or not at all: no threshold separates
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

_TESTED_COUNTS = 10


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The risk-coverage curve, one point for each of the G distinct confidences, from the most confident rows to all of them.

    Attributes:
        coverage: Fraction of the examples that are accepted, increasing, the last 1. Shape (G,).
        risk: Fraction of wrong predictions among the accepted examples. Shape (G,).
        threshold: Examples with a confidence >= this are accepted; decreasing. Shape (G,).
    """

    coverage: np.ndarray
    risk: np.ndarray
    threshold: np.ndarray


def risk_coverage_curve(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """Return the risk at every coverage that a threshold can have (El-Yaniv & Wiener 2010, Geifman & El-Yaniv 2017).

    Args:
        confidence: Any score that is higher where the model is more certain, finite. Shape (N,).
        correct: Whether each prediction was right: truth values, or 0 and 1. Shape (N,).

    Raises:
        ValueError: No rows, shapes that do not fit, a confidence that is not finite, or a ``correct`` that is neither 0 nor 1.
    """
    confidence, correct = _checked(confidence, correct)
    threshold, place, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    accepted = np.cumsum(count)
    wrong = np.cumsum(np.bincount(place, weights=~correct))
    return RiskCoverage(coverage=accepted / len(confidence), risk=wrong / accepted, threshold=-threshold)


def area_under_risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the AURC of Geifman, Uziel & El-Yaniv 2019, arXiv:1805.08206: the mean over the rows of the risk at the row's own threshold.

    Without ties that is the mean of the risks of the 1, 2, ..., N most confident rows, their eq. for the empirical AURC. With ties it is
    the area under the curve as a step function that takes, from one point to the next, the risk of the next one.
    """
    curve = risk_coverage_curve(confidence, correct)
    return float((np.diff(curve.coverage, prepend=0.0) * curve.risk).sum())


def area_under_generalised_risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the AUGRC of Traub et al. 2024, arXiv:2407.01032: the mean over all coverages of the fraction of all examples that are accepted
    and wrong.

    The curve is linear between its points, so that examples of equal confidence count as in an AUROC: with the accuracy a and the AUROC of
    telling right from wrong predictions by the confidence, it is (1 - AUROC) a (1 - a) + (1 - a)^2 / 2.
    """
    curve = risk_coverage_curve(confidence, correct)
    coverage, failures = np.append(0.0, curve.coverage), np.append(0.0, curve.risk * curve.coverage)
    return float((np.diff(coverage) * (failures[1:] + failures[:-1]) / 2).sum())


def excess_area_under_risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the E-AURC: the AURC less that of the best order there is, with every right prediction before every wrong one. At least 0.

    The best order's area is summed for the N rows, not approximated by r + (1 - r) log(1 - r) as in arXiv:1805.08206.
    """
    _, correct = _checked(confidence, correct)
    best = area_under_risk_coverage(-np.arange(len(correct), dtype=np.float64), np.sort(correct)[::-1])
    return max(0.0, area_under_risk_coverage(confidence, correct) - best)  # below 0 by rounding only


def coverage_at_risk(confidence: np.ndarray, correct: np.ndarray, risk: float) -> float:
    """Return the largest coverage whose risk on these rows is at most ``risk``; 0 where there is none.

    It is the optimum for these examples, found from their labels: for a guarantee on other examples see `threshold_for_risk`.
    """
    curve = risk_coverage_curve(confidence, correct)
    low = curve.risk <= _in_unit_interval(risk, "risk")
    return float(curve.coverage[low].max(initial=0.0))


def threshold_for_risk(confidence: np.ndarray, correct: np.ndarray, risk: float, *, level: float | None = None) -> float:
    """Return the lowest threshold at which the risk is at most ``risk``; infinite where there is none. Accept confidence >= threshold.

    Without ``level`` the risk is that of these very rows, and that of new ones is higher than asked for about as often as not.

    With ``level`` the threshold keeps, with that probability over the draw of these rows, the *true* risk at or below ``risk``, whatever
    the distribution and the model, if the rows are independent, alike, and were not used to fit or choose anything. It is Learn then
    Test (Angelopoulos et al. 2021, arXiv:2110.01052) with the exact binomial test, which is the one-sided bound of Clopper & Pearson
    1934: ten numbers of accepted rows m are fixed before the labels are looked at; given the confidence of the row in place m + 1, the
    m rows above it are independent of each other, so their errors are binomial; each m is tested at (1 - level) / 10 (Bonferroni).
    Testing them in a fixed sequence at the full 1 - level would be sharper, but these thresholds are taken from the rows themselves, and
    then it holds only where the true risk never falls as coverage grows.

    Args:
        confidence: As in `risk_coverage_curve`.
        correct: As in `risk_coverage_curve`.
        risk: Largest fraction of wrong predictions among the accepted examples, in (0, 1).
        level: Probability with which the promise holds, in (0, 1), or None for no promise.
    """
    confidence, correct = _checked(confidence, correct)
    _in_unit_interval(risk, "risk")
    if level is None:
        curve = risk_coverage_curve(confidence, correct)
        return float(curve.threshold[curve.risk <= risk].min(initial=np.inf))
    error = (1 - _in_unit_interval(level, "level")) / _TESTED_COUNTS
    fewest = max(1, math.ceil(math.log(error) / math.log1p(-risk)))  # with fewer rows not even none wrong is enough
    if fewest > len(confidence):
        return math.inf
    descending = np.append(-np.sort(-confidence), -np.inf)
    best = math.inf
    for count in np.unique(np.linspace(fewest, len(confidence), _TESTED_COUNTS).round().astype(int)):
        above = confidence > descending[count]  # fewer than `count` where confidences are equal
        if binom.cdf((~correct[above]).sum(), above.sum(), risk) <= error:
            best = min(best, float(np.nextafter(descending[count], np.inf)))
    return best


def threshold_for_coverage(confidence: np.ndarray, coverage: float) -> float:
    """Return the highest threshold at which at least the fraction ``coverage`` of these examples, in (0, 1], is accepted."""
    confidence, _ = _checked(confidence, np.ones(np.shape(confidence), dtype=bool))
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage is a fraction of the examples in (0, 1], got {coverage}.")
    # 0.07 * 100 is 7.000000000000001, and 8 rows are not what was asked for.
    count = max(1, math.ceil(coverage * len(confidence) - 1e-9))
    return float(-np.sort(-confidence)[count - 1])


def _checked(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if confidence.ndim != 1 or correct.shape != confidence.shape or len(confidence) == 0:
        raise ValueError(
            f"N confidences and N predictions, right or wrong, are needed, got {confidence.shape} and {correct.shape}."
        )
    if not np.isfinite(confidence).all():
        raise ValueError(f"A confidence must be finite; {int((~np.isfinite(confidence)).sum())} of {len(confidence)} are not.")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"correct must be 0 or 1 for each example, got {np.unique(correct)[:5]}.")
    return confidence, correct.astype(bool)


def _in_unit_interval(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}.")
    return value
