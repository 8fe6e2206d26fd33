"""Prior precision of Laplace's approximation: how wide the prior of the weights is, by the loss of held-out examples."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from swag_trainer.errors import SwagError
from swag_trainer.posterior.kronecker import KroneckerPosterior

_NARROWEST, _WIDEST = 5.0, -2.0  # powers of 10 of the prior precision


def lowest_power(loss: Callable[[float], float]) -> tuple[float, float]:
    """Return the power of 10 of the prior precision with the lowest loss, to a half, and that loss.

    From the narrowest prior on, which hardly differs from no noise at all, the prior is widened until the loss rises.

    Args:
        loss: Of a power.
    """
    cached = functools.cache(loss)
    best = power = _NARROWEST
    while power > _WIDEST and cached(power) <= cached(best):
        best, power = power, power - 1
    best = min((best, best + 0.5, best - 0.5), key=cached)
    return best, cached(best)


def with_best_prior(
    at: Callable[..., KroneckerPosterior], nll: Callable[..., float], *, num_held_out: int, num_samples: int
) -> KroneckerPosterior:
    """Return the posterior at the prior precision of the lowest NLL of held-out examples, which its record then names.

    Args:
        at: Makes the posterior at a precision, with further settings for its record.
        nll: Of the averaged draws of a posterior, or with ``at_mean=True`` of its mean.
        num_held_out: How many examples the NLL is of.
        num_samples: How many draws it is estimated with.
    """
    power, lowest = lowest_power(lambda power: nll(at(10**power)))
    return at(
        10**power,
        held_out_examples=float(num_held_out),
        nll_at_mean=nll(at(10**power), at_mean=True),
        nll=lowest,
        num_samples=float(num_samples),
    )


def check_precision(prior_precision: float) -> None:
    """Refuse a prior precision that is none.

    Raises:
        SwagError: It is not positive, or not finite.
    """
    if not 0 < prior_precision < math.inf:
        raise SwagError(f"prior_precision must be finite and > 0, got {prior_precision}.")
