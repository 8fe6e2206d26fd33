"""Regression scores of predictive distributions: Gaussian NLL, CRPS and interval coverage, of Gaussians and of draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr
from scipy.stats import norm

from swag_trainer.metrics.checks import checked_numbers


def gaussian_nll(mean: ArrayLike, std: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean of -log N(target; mean, std^2), in nats, the constant log(2 pi) / 2 included.

    Args:
        mean: Predicted means. Shape (N,).
        std: Predicted standard deviations, > 0, the noise of the targets included. Shape (N,).
        targets: True numbers. Shape (N,).

    Raises:
        ValueError: No rows, other lengths, numbers that are not finite, or a ``std`` of 0 or less, here and in the functions below.
    """
    mean, std, targets = _checked_gaussian(mean, std, targets)
    return float((0.5 * np.log(2 * np.pi) + np.log(std) + 0.5 * ((targets - mean) / std) ** 2).mean())


def gaussian_crps(mean: ArrayLike, std: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean continuous ranked probability score of Gaussians, in the unit of the targets; 0 is best.

    Gneiting and Raftery 2007, section 4.2, with the sign turned: std (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = (y - mean) / std.
    """
    mean, std, targets = _checked_gaussian(mean, std, targets)
    z = (targets - mean) / std
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return float((std * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))).mean())


def ensemble_crps(draws: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean continuous ranked probability score of the distribution that gives each draw the weight 1/S.

    Gneiting and Raftery 2007, eq. (21), with the sign turned: E|X - y| - E|X - X'| / 2, each expectation over all draws, a draw with itself included. Of one
    draw it is the absolute error.

    Args:
        draws: Shape (S, N).
        targets: Shape (N,).
    """
    draws, targets = _checked_draws(draws, targets)
    count = len(draws)
    # Sorted, the sum of |x_i - x_j| over all pairs is a weighted sum: no (S, S, N) array.
    weights = 2 * np.arange(1, count + 1) - count - 1
    spread = (weights[:, None] * np.sort(draws, axis=0)).sum(axis=0) / count**2
    return float((np.abs(draws - targets).mean(axis=0) - spread).mean())


def gaussian_coverage(mean: ArrayLike, std: ArrayLike, targets: ArrayLike, *, level: float = 0.95) -> float:
    """Return the fraction of targets inside the central interval of probability ``level``, borders included; ``level`` is best."""
    mean, std, targets = _checked_gaussian(mean, std, targets)
    return float((np.abs(targets - mean) <= norm.ppf((1 + _checked_level(level)) / 2) * std).mean())


def ensemble_coverage(draws: ArrayLike, targets: ArrayLike, *, level: float = 0.95) -> float:
    """Return the fraction of targets between the draws' quantiles at (1 - level) / 2 and (1 + level) / 2, borders included.

    Quantiles are interpolated between draws, so few draws make intervals that are too short: the limits of 10 draws lie inside of their
    range, where only 9 of 11 targets would fall.

    Args:
        draws: Of the targets, that is, with their noise. Shape (S, N).
        targets: Shape (N,).
        level: In (0, 1).
    """
    draws, targets = _checked_draws(draws, targets)
    level = _checked_level(level)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return float(((low <= targets) & (targets <= high)).mean())


def _checked_gaussian(mean: ArrayLike, std: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, std = checked_numbers("Means", mean, ndim=1), checked_numbers("Standard deviations", std, ndim=1)
    targets = checked_numbers("Targets", targets, ndim=1)
    if not mean.shape == std.shape == targets.shape:
        raise ValueError(
            f"As many means, standard deviations and targets are needed, got {len(mean)}, {len(std)}, {len(targets)}."
        )
    if not (std > 0).all():
        raise ValueError(
            f"Standard deviations must be > 0, the smallest is {std.min():g}. Add the noise of the targets to them."
        )
    return mean, std, targets


def _checked_draws(draws: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    draws, targets = checked_numbers("Draws", draws, ndim=2), checked_numbers("Targets", targets, ndim=1)
    if draws.shape[1] != len(targets):
        raise ValueError(f"Draws of shape (S, N) and N targets are needed, got {draws.shape} and {targets.shape}.")
    return draws, targets


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level is the probability of the interval and must be in (0, 1), got {level}.")
    return level
