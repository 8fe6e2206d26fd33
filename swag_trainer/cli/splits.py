"""Subsets of labelled examples: balanced ones to train on, and stratified ones to hold out."""

from __future__ import annotations

import numpy as np

MOST_HELD_OUT = 500


def balanced(targets: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """Return the indices of a balanced subset, in ascending order; the seed decides which examples are in it."""
    order = np.random.default_rng(seed).permutation(len(targets))
    taken: dict[int, int] = {}
    turn = []
    for index in order:
        turn.append(taken.setdefault(int(targets[index]), 0))
        taken[int(targets[index])] += 1
    return np.sort(order[np.argsort(turn, kind="stable")[:num_rows]])


def stratified(targets: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """Return the indices of a subset that has the classes in the proportions of the whole, in ascending order.

    Temperatures, thresholds and conformal quantiles hold for examples that are exchangeable with those to come, so what they are chosen
    on must not be balanced. Counts are rounded by largest remainders. The last example of a class is never taken.

    Args:
        targets: Class numbers. Shape (N,).
        num_rows: Size of the subset; it is smaller where classes of one example leave too few.
        seed: Decides which examples are in it.
    """
    classes, sizes = np.unique(targets, return_counts=True)
    quotas = num_rows * sizes / max(1, len(targets))
    counts = np.minimum(np.floor(quotas).astype(int), sizes - 1)
    for place in np.argsort(counts - quotas, kind="stable").tolist():
        if counts.sum() < num_rows and counts[place] < sizes[place] - 1:
            counts[place] += 1
    order = np.random.default_rng(seed).permutation(len(targets))
    chosen = [order[targets[order] == label][:count] for label, count in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)
