"""Out-of-distribution detection: AUROC, AUPR, FPR at a TPR, and uncertainty scores. A higher score means more out-of-distribution (OOD)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from swag_trainer.metrics.checks import checked_numbers, checked_probabilities


def uncertainty_scores(probabilities: ArrayLike, mutual_information: ArrayLike | None = None) -> dict[str, np.ndarray]:
    """Return the uncertainty scores that examples can be called out-of-distribution by.

    Args:
        probabilities: Averaged over the draws, if there are any. Shape (N, C).
        mutual_information: Of prediction and weights, in nats, from a method that draws. Shape (N,).

    Returns:
        "entropy" in nats, "one_minus_max" (1 less the largest probability) and, where given, "mutual_information". Shape (N,).

    Raises:
        ValueError: Rows that are no probabilities, or another number of rows.
    """
    probabilities = checked_probabilities(probabilities)
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))  # 0 log 0 is 0
    scores = {"entropy": -(probabilities * logs).sum(axis=1), "one_minus_max": 1 - probabilities.max(axis=1)}
    if mutual_information is not None:
        scores["mutual_information"] = checked_numbers("Mutual information", mutual_information, ndim=1)
        if len(scores["mutual_information"]) != len(probabilities):
            raise ValueError(
                f"{len(probabilities)} rows have {len(scores['mutual_information'])} values of mutual information."
            )
    return scores


def auroc(in_distribution: ArrayLike, ood: ArrayLike) -> float:
    """Return how often an OOD example has a higher score than an in-distribution one; an equal score counts one half.

    The area under the curve of true against false positive rate (Mann and Whitney 1947): 0.5 by chance, 1 at best.

    Args:
        in_distribution: Scores of the in-distribution examples. Shape (N,).
        ood: Scores of the OOD examples. Shape (M,).

    Raises:
        ValueError: One of them is empty, not finite or not one-dimensional, here and in the functions below.
    """
    in_distribution, ood = _checked(in_distribution, ood)
    ranks = rankdata(np.concatenate([in_distribution, ood]))[len(in_distribution) :]
    return float((ranks.sum() - len(ood) * (len(ood) + 1) / 2) / (len(in_distribution) * len(ood)))


def aupr(in_distribution: ArrayLike, ood: ArrayLike) -> float:
    """Return the average precision of detecting OOD examples, over the thresholds at which more of them are found.

    scikit-learn's ``average_precision_score`` with OOD as the positive class. By chance it is the fraction of OOD examples among all,
    so two values compare only where that fraction is the same.
    """
    found, alarms = _found_and_alarms(*_checked(in_distribution, ood))
    return float((np.diff(found, prepend=0) / found[-1] * found / (found + alarms)).sum())


def fpr_at_tpr(in_distribution: ArrayLike, ood: ArrayLike, tpr: float = 0.95) -> float:
    """Return the fraction of in-distribution examples called OOD by the strictest threshold that finds ``tpr`` of the OOD ones.

    FPR95 with OOD as the positive class; papers after Hendrycks and Gimpel differ in which class that is, and the two give different
    numbers.

    Args:
        in_distribution: Scores of the in-distribution examples. Shape (N,).
        ood: Scores of the OOD examples. Shape (M,).
        tpr: Fraction of the OOD examples to find, in (0, 1].
    """
    in_distribution, ood = _checked(in_distribution, ood)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr is the fraction of the OOD examples to be found and must be in (0, 1], got {tpr}.")
    needed = int(np.ceil(round(tpr * len(ood), 9)))  # 0.55 * 100 is 55.00000000000001
    threshold = np.sort(ood)[len(ood) - needed]
    return float((in_distribution >= threshold).mean())


def _checked(in_distribution: ArrayLike, ood: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    return (
        checked_numbers("Scores of in-distribution examples", in_distribution, ndim=1),
        checked_numbers("Scores of OOD examples", ood, ndim=1),
    )


def _found_and_alarms(in_distribution: np.ndarray, ood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count OOD and in-distribution examples at or above each threshold, from the highest score down; equal scores are one threshold."""
    scores = np.concatenate([in_distribution, ood])
    is_ood = np.arange(len(scores)) >= len(in_distribution)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(is_ood[order])[last]
    return found, last + 1 - found
