"""Monte-Carlo standard error of averages over weight draws, and the seeds of independent blocks of draws."""

from __future__ import annotations

import torch
from scipy.stats import chi2
from torch import Tensor

from swag_trainer.errors import SwagError
from swag_trainer.posterior.design import derived_seed


def block_seed(seed: int, block: int) -> int:
    """The seed of one of several independent blocks of draws; the first block's is the seed itself."""
    return seed if block == 0 else derived_seed(seed, f"block {block}")


def checked_max_error(max_error: float | None) -> float | None:
    """Return a standard error to stay below.

    Raises:
        SwagError: It is not above 0, or not finite.
    """
    if max_error is not None and not 0 < max_error < float("inf"):
        raise SwagError(f"max_error is a standard error to stay below and must be finite and > 0, got {max_error}.")
    return max_error


def weighted_mean(draws: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over the first axis; each of the S draws counts by its weight.

    Args:
        draws: Shape (S, ...), float64.
        weights: Shape (S,), sums to 1; None where all count the same.
    """
    return draws.mean(dim=0) if weights is None else torch.tensordot(weights.to(draws), draws, dims=1)


def standard_error(draws: Tensor, draws_per_block: int, weights: Tensor | None = None) -> Tensor:
    """Estimate the Monte-Carlo standard error of the mean over S draws: the spread of the means of independent blocks.

    Independent draws are blocks of one, which gives the textbook formula. Matched draws sum to zero, so the linear part of the model
    cancels in their mean, and that formula would overstate its error several times; how much is left cannot be seen from one block,
    as any ten predictions that sum to zero could be the cancelled part. Hence whole blocks, each matched within itself.

    With weights a block of total weight w_b has the mean m_b, and with the mean m over all blocks the square of the estimate is

        sum_b w_b^2 * sum_b w_b (m_b - m)^2 / (1 - sum_b w_b^2),

    the variance of a mean with reliability weights; for B equal weights it is the variance of the m_b over B.

    Args:
        draws: What each draw predicts, one block after the other. Shape (S, N, C).
        draws_per_block: How many consecutive draws depend on each other.
        weights: What each draw counts. Shape (S,), sums to 1; None where all count the same.

    Returns:
        The estimate, whose square is unbiased; NaN where there are fewer than two blocks. Shape (N, C).
    """
    blocks = draws.unflatten(0, (-1, draws_per_block))
    if len(blocks) < 2 or draws.shape[1] == 0:
        return torch.full_like(draws[0], torch.nan)
    if weights is None:
        return blocks.mean(dim=1).std(dim=0, correction=1) / len(blocks) ** 0.5
    inside = weights.to(draws).unflatten(0, (-1, draws_per_block))
    counts = inside.sum(dim=1) > 0
    blocks, inside = blocks[counts], inside[counts]
    totals = inside.sum(dim=1)
    means = torch.einsum("bd,bdnc->bnc", inside / totals[:, None], blocks)
    spread = weighted_mean((means - weighted_mean(draws, weights)).square(), totals)
    concentration = totals.square().sum()
    return (spread * concentration / (1 - concentration)).sqrt()


def error_limit(draws: Tensor, draws_per_block: int, weights: Tensor | None = None) -> Tensor:
    """An upper limit for the Monte-Carlo standard error of the mean over S draws, for the worst class of each row.

    With 95 % confidence each, by the chi-square distribution of a variance of normal values, two limits hold: that of the blocks'
    spread, and that of the formula for independent draws, which matched draws stay below unless the predictions hardly depend on the
    weights to first order. The lower one is returned. With few blocks the factor on the estimate is large (16, 4.4, 2.9 for 2, 3, 4
    blocks), so that a row whose blocks agree by luck is rarely believed. Blocks of unequal weights w_b count as 1 / sum_b w_b^2 blocks
    (Kish 1965, Survey Sampling, section 11.7).

    Args:
        draws, draws_per_block, weights: As in `standard_error`.

    Returns:
        Shape (N,); infinite from a single draw.
    """
    limits = [torch.full_like(draws[0], torch.inf)]
    for size in {draws_per_block, 1}:
        freedom = _effective_blocks(len(draws), size, weights) - 1
        if freedom > 0:
            limit = standard_error(draws, size, weights) * (freedom / chi2.ppf(0.05, freedom)) ** 0.5
            limits.append(limit.nan_to_num(nan=torch.inf))  # of one block, whose weight came out as 1 - 1e-16
    return torch.stack(limits).amin(dim=0).amax(dim=-1)


def _effective_blocks(num_draws: int, size: int, weights: Tensor | None) -> float:
    if weights is None:
        return num_draws // size
    return 1 / float(weights.double().unflatten(0, (-1, size)).sum(dim=1).square().sum())
