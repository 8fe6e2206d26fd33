"""Diagnostics of a trajectory: effective rank, autocorrelation and drift of the snapshots.

SWAG takes the spread of the snapshots for the posterior's. That is fair when they wander around one place, and it is not when they
still travel: then the first of them differ from the last, and the covariance measures the journey.
"""

from __future__ import annotations

import torch
from torch import Tensor

FALLING_RATE = 0.5  # of the first snapshot's learning rate
TRAVELLING = 0.6  # fraction of the spread


def trajectory_statistics(deviations: Tensor, *, count: int) -> dict[str, float]:
    """Return diagnostics of the latest K snapshots, computed from the dot products of their deviations alone.

    Args:
        deviations: The deviations that were kept, oldest first, each from the mean as it stood. Shape (K, P).
        count: How many snapshots there were in all, >= K.

    Returns:
        * ``effective_rank``: (trace G)^2 / trace G^2 of the Gram matrix G = D D^T, between 1 and K: over how many directions the
          low-rank covariance is spread (the participation ratio of its eigenvalues).
        * ``autocorrelation``: of one snapshot with the next, about their common mean, averaged over the weights by their variance:
          near 1 for a slow walk, near 0 for independent snapshots.
        * ``drift``: the fraction of the snapshots' spread that lies between the first and the second half of them, in [0, 1]: about
          1 / K for independent ones, 0.75 for a straight line.

        Empty for fewer than four snapshots, or when nothing moved.
    """
    kept = len(deviations)
    if kept < 4:
        return {}
    gram = (deviations @ deviations.T).double().cpu()
    total = gram.trace()
    if not total > 0:
        return {}
    # The snapshots about their common mean, as combinations of the deviations: w_n = d_n + mean_n, and one step moves the mean by
    # mean_n - mean_(n-1) = d_n / (n - 1).
    first = count - kept + 1
    snapshots = torch.eye(kept, dtype=torch.float64)
    for row in range(1, kept):
        snapshots[row:, row] += 1 / (first + row - 1)
    snapshots -= snapshots.mean(dim=0)
    products = snapshots @ gram @ snapshots.T
    spread = products.trace()
    halves = torch.full((kept,), 1 / (kept // 2), dtype=torch.float64)
    halves[: kept // 2] = -1 / (kept // 2)
    if kept % 2:  # the snapshot in the middle belongs to neither half
        halves[kept // 2] = 0
    return {
        "effective_rank": float(total**2 / (gram**2).sum()),
        "autocorrelation": float(products.diagonal(1).sum() / spread),
        "drift": min(1.0, float(halves @ products @ halves / 4 / (spread / kept))),
    }


def warning(statistics: dict[str, float], learning_rates: list[float | None]) -> str | None:
    """Return a warning about a trajectory that a Gaussian does not describe well; None where there is none."""
    rates = [rate for rate in learning_rates if rate is not None]
    if rates and rates[-1] < FALLING_RATE * rates[0]:
        return (
            f"The learning rate fell from {rates[0]:.3g} to {rates[-1]:.3g} while the snapshots were taken: the posterior mostly "
            'measures that. SwagCallback(learning_rate="hold"), the default, keeps it constant.'
        )
    drift = statistics.get("drift", 0.0)
    if drift > TRAVELLING:
        return (
            f"{drift:.0%} of the spread of the last snapshots lies between the first and the second half of them: training was "
            "still on its way, and the posterior mostly measures that. Train longer, or start the collection later."
        )
    return None
