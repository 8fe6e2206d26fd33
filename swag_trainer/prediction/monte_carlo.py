"""How far the mean of S draws is from that of infinitely many, and how draws are made so that this can be said."""

from __future__ import annotations

import hashlib

import torch
from scipy.stats import chi2
from torch import Tensor


def block_seed(seed: int, block: int) -> int:
    """The seed of one of several independent blocks of draws; the first block's is the seed itself."""
    return seed if block == 0 else int.from_bytes(hashlib.sha256(f"{seed}/block {block}".encode()).digest()[:8], "little") >> 1


def standard_error(draws: Tensor, draws_per_block: int) -> Tensor:
    """Estimate the Monte-Carlo standard error of the mean over S draws: the spread of the means of independent blocks.

    Independent draws are blocks of one, which gives the textbook formula. Matched draws sum to zero, so the linear part of the model
    cancels in their mean, and that formula would overstate its error several times; how much is left cannot be seen from one block,
    as any ten answers that sum to zero could be the cancelled part. Hence whole blocks, each matched within itself.

    Args:
        draws: What each draw answers, one block after the other. Shape (S, N, C).
        draws_per_block: How many consecutive draws depend on each other.

    Returns:
        The estimate, whose square is unbiased; NaN where there are fewer than two blocks. Shape (N, C).
    """
    means = draws.unflatten(0, (-1, draws_per_block)).mean(dim=1)
    if len(means) < 2:
        return torch.full_like(means[0], torch.nan)
    return means.std(dim=0, correction=1) / len(means) ** 0.5


def error_limit(draws: Tensor, draws_per_block: int) -> Tensor:
    """An upper limit for the Monte-Carlo standard error of the mean over S draws, for the worst class of each row.

    With 95 % confidence each, by the chi-square distribution of a variance of normal values, two limits hold: that of the blocks'
    spread, and that of the formula for independent draws, which matched draws stay below unless the answers hardly depend on the
    weights to first order. The lower one is returned. With few blocks the factor on the estimate is large (16, 4.4, 2.9 for 2, 3, 4
    blocks), so that a row whose blocks agree by luck is rarely believed.

    Args:
        draws: As in `standard_error`.
        draws_per_block: As in `standard_error`.

    Returns:
        Shape (N,); infinite from a single draw.
    """
    limits = [torch.full_like(draws[0], torch.inf)]
    for size in {draws_per_block, 1}:
        freedom = len(draws) // size - 1
        if freedom > 0:
            limits.append(standard_error(draws, size) * (freedom / chi2.ppf(0.05, freedom)) ** 0.5)
    return torch.stack(limits).amin(dim=0).amax(dim=-1)
