"""One temperature for the averaged probabilities of several draws."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

_PRIOR_STD = 0.5
_GRID = np.linspace(-3.0, 3.0, 13)  # log T, from 0.05 to 20


def averaged_nll(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood, in nats, of the draws' averaged probabilities: mean over s of softmax(logits_s / T).

    Args:
        logits: Of each draw, up to a number per draw and row: logarithms of probabilities do as well. Shape (S, N, C).
        labels: True classes. Shape (N,).
        temperature: T > 0.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    log_likelihood = scaled[:, np.arange(len(labels)), labels] - logsumexp(scaled, axis=-1)
    return float(np.log(len(scaled)) - logsumexp(log_likelihood, axis=0).mean())


def fit_averaged_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the temperature T of the lowest penalised `averaged_nll`, between 0.05 and 20, and that penalised figure.

    The penalty is that of a normal prior for log T with mean 0 and standard deviation 0.5, (log T)^2 / (2 * 0.5^2 * N) for N rows: it
    fades as rows are added. Without it the fit to 100 rows that were nearly all answered rightly chose T = 0.02.

    Args:
        logits: As in `averaged_nll`. Shape (S, N, C).
        labels: True classes. Shape (N,).
    """

    def penalised(log_temperature: float) -> float:
        penalty = log_temperature**2 / (2 * _PRIOR_STD**2 * len(labels))
        return averaged_nll(logits, labels, float(np.exp(log_temperature))) + penalty

    # The average over draws can have several minima: the grid finds the valley, the search its bottom.
    start = _GRID[int(np.argmin([penalised(point) for point in _GRID]))]
    step = _GRID[1] - _GRID[0]
    found = minimize_scalar(penalised, bounds=(max(start - step, _GRID[0]), min(start + step, _GRID[-1])), method="bounded")
    best = min((start, found.x), key=penalised)
    return float(np.exp(best)), float(penalised(best))
