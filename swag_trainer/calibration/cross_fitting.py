"""Choice among ways to draw on held-out examples, and cross-fitting: predictions for each fold by what was chosen on the others.

Choosing and scoring on the same examples flatters what was chosen, and holding half of them back chooses badly. Cross-fitting (Stone
1974, J. R. Stat. Soc. B 36(2), "Cross-validatory choice and assessment of statistical predictions") does both on all examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import softmax

from swag_trainer.metrics.temperature import PRIOR_STD, averaged_nll
from swag_trainer.posterior.tuning import Center

NUM_FOLDS = 5
DEFAULT_SCALE = 1.0
SCALE_PRIOR_STD = math.log(4)  # of log scale, around the default
DEPARTURE_PENALTY = 2.0  # nats
_STEP = 0.05
_BLOCK = 2**18  # numbers that are exponentiated at once
_LOG_TEMPERATURES = _STEP * np.arange(-60, 61)  # T from 0.05 to 20


@dataclass(frozen=True, eq=False)
class CandidateLogits:
    """Predictions for held-out examples by one way to draw.

    Attributes:
        center, scale, dropout: The way, see `swag_trainer.posterior.tuning.Candidate`.
        logits: Of each draw, up to a constant per draw and example. Shape (S, N, C), float64.
        labels: True classes. Shape (N,).
        weights: What each draw counts in an average. Shape (S,), sums to 1; None where all count the same.
    """

    center: Center
    scale: float
    dropout: bool
    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None

    @property
    def penalty(self) -> float:
        """Negative logarithm of its prior up to a constant, in nats for all examples together.

        Normal in log scale around the default, where there is noise; 2 nats against another centre than the mean or no noise, and 2 against
        dropout. A free choice among seven candidates costs 100 examples more than it gains: over 6 runs on five tasks whose validation
        examples were drawn anew, the NLL lay 0.020 below MAP's with a temperature without the first of these, 0.022 with it, and 0.023
        for draws around the mean without any choice (benchmarks/results/calibration-study.json).
        """
        from_scale = math.log(self.scale / DEFAULT_SCALE) ** 2 / (2 * SCALE_PRIOR_STD**2) if self.scale > 0 else 0.0
        is_elsewhere = self.center != "mean" or self.scale == 0
        return from_scale + DEPARTURE_PENALTY * (is_elsewhere + self.dropout)

    @cached_property
    def losses(self) -> np.ndarray:
        """Negative log-likelihood of each example at each temperature of the grid, in nats. Shape (temperatures, N).

        It serves the choice on any part of the examples. An example costs as much at most as in `swag_trainer.metrics.scores.mean_nll`.
        """
        logits = self.logits - self.logits.max(axis=-1, keepdims=True)
        true = logits[:, np.arange(len(self.labels)), self.labels]
        likelihoods = np.empty((len(_LOG_TEMPERATURES), len(self.labels)))
        for block in np.array_split(
            np.arange(len(likelihoods)), min(len(likelihoods), -(-len(likelihoods) * logits.size // _BLOCK))
        ):
            temperatures = np.exp(_LOG_TEMPERATURES[block])[:, None, None]
            of_draws = np.exp(true / temperatures) / np.exp(logits / temperatures[..., None]).sum(axis=-1)
            likelihoods[block] = np.average(of_draws, axis=1, weights=self.weights)
        return -np.log(np.maximum(likelihoods, np.finfo(np.float64).eps))

    def fit(self, examples: np.ndarray, *, prior_std: float) -> tuple[float, float]:
        """Return the best temperature for some examples, and the negative logarithm of prior times likelihood there, in nats in total.

        The lowest point of the grid and its neighbours make a parabola, whose vertex is taken: off by less than 0.1 % of T.
        """
        totals = self.losses[:, examples].sum(axis=1) + _LOG_TEMPERATURES**2 / (2 * prior_std**2)
        place = int(np.clip(totals.argmin(), 1, len(totals) - 2))
        before, lowest, after = totals[place - 1 : place + 2]
        slope, curvature = (after - before) / 2, before - 2 * lowest + after
        offset = float(np.clip(-slope / curvature, -1, 1)) if curvature > 0 else float(-np.sign(slope))
        loss = lowest + slope * offset + curvature * offset**2 / 2
        return math.exp(_LOG_TEMPERATURES[place] + _STEP * offset), float(loss) + self.penalty

    def nll(self, temperature: float = 1.0) -> float:
        """Return the mean negative log-likelihood of all examples, in nats."""
        return averaged_nll(self.logits, self.labels, temperature, weights=self.weights)

    def probabilities(self, examples: np.ndarray, temperature: float) -> np.ndarray:
        """Return the averaged probabilities of some examples. Shape (n, C)."""
        return np.average(softmax(self.logits[:, examples] / temperature, axis=-1), axis=0, weights=self.weights)


@dataclass(frozen=True)
class Choice:
    """What was chosen among candidates.

    Attributes:
        best: The place of the chosen one.
        temperatures: The best temperature of every candidate.
    """

    best: int
    temperatures: list[float]

    @property
    def temperature(self) -> float:
        """The temperature of the chosen one."""
        return self.temperatures[self.best]


def choose(candidates: Sequence[CandidateLogits], examples: np.ndarray, *, prior_std: float = PRIOR_STD) -> Choice:
    """Return the candidate and the temperature of the highest posterior probability, given some examples.

    Args:
        candidates: What to choose from. Of equally good ones the first is chosen.
        examples: The numbers of the examples that choose. Shape (n,).
        prior_std: Of log T a priori, see `swag_trainer.metrics.fit_temperature`.
    """
    temperatures, losses = zip(*(candidate.fit(examples, prior_std=prior_std) for candidate in candidates), strict=True)
    return Choice(int(np.argmin(losses)), list(temperatures))


def folds_of(
    num_examples: int, *, seed: int, num_folds: int = NUM_FOLDS, num_events: np.ndarray | None = None
) -> list[np.ndarray]:
    """Divide the numbers of the examples at random into folds of equal size, give or take one.

    Args:
        num_examples: How many there are.
        seed: Of the division.
        num_folds: How many folds.
        num_events: How many events each example has; the events of an example, which are numbered one example after the other, share a
            fold, and their numbers are returned. Shape (num_examples,); None where every example is one event.
    """
    folds = np.array_split(np.random.default_rng(abs(seed)).permutation(num_examples), num_folds)
    if num_events is None:
        return folds
    example = np.repeat(np.arange(num_examples), num_events)
    return [np.flatnonzero(np.isin(example, fold)) for fold in folds]


def cross_fitted(
    candidates: Sequence[CandidateLogits], folds: Sequence[np.ndarray], *, prior_std: float = PRIOR_STD
) -> np.ndarray:
    """Return averaged probabilities of each fold, by the candidate and the temperature that the other folds choose. Shape (N, C).

    Args:
        candidates, prior_std: As in `choose`.
        folds: The numbers of the examples in each fold; every example is in one.
    """
    probabilities = np.empty(candidates[0].logits.shape[1:])
    for fold in folds:
        choice = choose(candidates, np.setdiff1d(np.arange(len(probabilities)), fold), prior_std=prior_std)
        probabilities[fold] = candidates[choice.best].probabilities(fold, choice.temperature)
    return probabilities
