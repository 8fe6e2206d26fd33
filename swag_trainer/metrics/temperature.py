"""Temperature scaling: negative log-likelihood of averaged draws, and the temperature that minimises it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from swag_trainer.metrics.checks import checked_labels, checked_numbers
from swag_trainer.metrics.scores import mean_nll

PRIOR_STD = 0.2  # of log T, for every temperature of this package
_GRID = np.linspace(-4.0, 4.0, 17)  # log T, from 0.018 to 55


def averaged_nll(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0, *, weights: np.ndarray | None = None
) -> float:
    """Return the mean negative log-likelihood of the draws' averaged probabilities, mean over s of softmax(logits_s / T), in nats.

    It is `swag_trainer.metrics.negative_log_likelihood` of these probabilities, with the same smallest probability.

    Args:
        logits: Of each draw, up to a constant per draw and example: logarithms of probabilities do as well. Shape (S, N, C).
        labels: True classes. Shape (N,).
        temperature: T > 0.
        weights: What each draw counts in the average. Shape (S,), sums to 1; None where all count the same.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    log_likelihood = scaled[:, np.arange(len(labels)), labels] - logsumexp(scaled, axis=-1)
    if weights is not None:
        return mean_nll(logsumexp(log_likelihood, axis=0, b=np.asarray(weights)[:, None]))
    return mean_nll(logsumexp(log_likelihood, axis=0) - np.log(len(scaled)))


def penalised_nll(
    logits: np.ndarray,
    labels: np.ndarray,
    temperature: float,
    *,
    prior_std: float | None = PRIOR_STD,
    weights: np.ndarray | None = None,
) -> float:
    """Return what `fit_temperature` minimises: `averaged_nll` plus (log T)^2 / (2 prior_std^2 N), which is 0 without a prior.

    Args:
        logits: Shape (S, N, C).
        labels: Shape (N,).
        temperature: T > 0.
        prior_std: As in `fit_temperature`.
        weights: As in `averaged_nll`. Shape (S,).
    """
    penalty = 0.0 if prior_std is None else np.log(temperature) ** 2 / (2 * prior_std**2 * len(labels))
    return float(averaged_nll(logits, labels, temperature, weights=weights) + penalty)


def fit_temperature(
    logits: ArrayLike, labels: ArrayLike, *, prior_std: float | None = PRIOR_STD, weights: ArrayLike | None = None
) -> float:
    """Return the temperature T of the lowest penalised negative log-likelihood of one draw's or several draws' averaged probabilities.

    Guo et al. 2017, arXiv:1706.04599, section 4.2, plus a normal prior for log T with mean 0: its penalty
    (log T)^2 / (2 prior_std^2 N) fades as examples are added. Without it, 100 examples of which nearly all are predicted correctly
    ask for T near 0, and the first wrong prediction on other examples is then very costly: T = 0.02 once, and a test NLL of 0.695
    instead of 0.278. `swag_trainer.tune` has the same prior for every candidate and baseline, so that no
    method is favoured by it. T lies between exp(-4) and exp(4). Fit it on validation data, never on the data that it is evaluated on.

    Args:
        logits: Finite, of one model, shape (N, C), or of each draw, shape (S, N, C).
        labels: True classes. Shape (N,).
        prior_std: Standard deviation of log T a priori, > 0; None for no prior, which is Guo's plain fit.
        weights: What each draw counts. Shape (S,), sums to 1; None where all count the same.

    Raises:
        ValueError: No examples, shapes that do not fit, logits that are not finite, impossible labels, or a ``prior_std`` of 0 or less.
    """
    logits = checked_numbers("Logits", logits, ndim=3 if np.ndim(logits) == 3 else 2)
    labels = checked_labels(labels, logits.shape[-1])
    if len(labels) != logits.shape[-2]:
        raise ValueError(f"Logits of shape (N, C) or (S, N, C) and N labels are needed, got {logits.shape} and {labels.shape}.")
    if prior_std is not None and not prior_std > 0:
        raise ValueError(
            f"prior_std is the standard deviation of log T and must be > 0, or None for no prior; got {prior_std}."
        )
    draws = logits.reshape(-1, *logits.shape[-2:])
    weights = None if weights is None else np.asarray(weights, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return penalised_nll(draws, labels, float(np.exp(log_temperature)), prior_std=prior_std, weights=weights)

    # The average over draws can have several minima: the grid finds the valley, the search its lowest point.
    start = _GRID[int(np.argmin([loss(point) for point in _GRID]))]
    step = _GRID[1] - _GRID[0]
    found = minimize_scalar(loss, bounds=(max(start - step, _GRID[0]), min(start + step, _GRID[-1])), method="bounded")
    return float(np.exp(min((start, found.x), key=loss)))
