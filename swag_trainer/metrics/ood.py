"""Are foreign rows told from known ones by how unsure a method is of them? A higher score means more foreign, everywhere here."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from swag_trainer.metrics.checks import checked_numbers, checked_probabilities


def uncertainty_scores(probabilities: ArrayLike, mutual_information: ArrayLike | None = None) -> dict[str, np.ndarray]:
    """Return what a row may be called foreign by.

    Args:
        probabilities: Averaged over the draws, if there are any. Shape (N, C).
        mutual_information: Of answer and weights, in nats, from a method that draws. Shape (N,).

    Returns:
        "entropy" of a row in nats, "one_minus_max" (1 less the largest probability) and, where given, "mutual_information". Shape (N,).

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


def auroc(known_scores: ArrayLike, foreign_scores: ArrayLike) -> float:
    """Return how often a foreign row has a higher score than a known one; an equal score counts one half.

    The area under the curve of true against false positive rate (Mann and Whitney 1947): 0.5 by chance, 1 at best.

    Args:
        known_scores: Shape (N,).
        foreign_scores: Shape (M,).

    Raises:
        ValueError: One of them is empty, not finite or not one-dimensional, here and in the functions below.
    """
    known, foreign = _checked(known_scores, foreign_scores)
    ranks = rankdata(np.concatenate([known, foreign]))[len(known) :]
    return float((ranks.sum() - len(foreign) * (len(foreign) + 1) / 2) / (len(known) * len(foreign)))


def aupr(known_scores: ArrayLike, foreign_scores: ArrayLike) -> float:
    """Return the average precision of calling rows foreign, over the thresholds at which more of them are found.

    scikit-learn's ``average_precision_score`` with the foreign rows as the positive class. By chance it is the foreign rows' share of
    all rows, so two values compare only where that share is the same.
    """
    found, alarms = _found_and_alarms(*_checked(known_scores, foreign_scores))
    return float((np.diff(found, prepend=0) / found[-1] * found / (found + alarms)).sum())


def fpr_at_tpr(known_scores: ArrayLike, foreign_scores: ArrayLike, tpr: float = 0.95) -> float:
    """Return the share of the known rows that is called foreign by the strictest threshold that finds ``tpr`` of the foreign ones.

    FPR95 with the foreign rows as the positive class; Hendrycks and Gimpel's followers are divided over which class that is, and the
    two give different numbers.

    Args:
        known_scores: Shape (N,).
        foreign_scores: Shape (M,).
        tpr: Share of foreign rows to find, in (0, 1].
    """
    known, foreign = _checked(known_scores, foreign_scores)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr is the share of the foreign rows to be found and must be in (0, 1], got {tpr}.")
    needed = int(np.ceil(round(tpr * len(foreign), 9)))  # 0.55 * 100 is 55.00000000000001
    threshold = np.sort(foreign)[len(foreign) - needed]
    return float((known >= threshold).mean())


def _checked(known_scores: ArrayLike, foreign_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    return (
        checked_numbers("Scores of known rows", known_scores, ndim=1),
        checked_numbers("Scores of foreign rows", foreign_scores, ndim=1),
    )


def _found_and_alarms(known: np.ndarray, foreign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count foreign and known rows at or above each threshold, from the highest score down; equal scores are one threshold."""
    scores = np.concatenate([known, foreign])
    is_foreign = np.arange(len(scores)) >= len(known)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(is_foreign[order])[last]
    return found, last + 1 - found
