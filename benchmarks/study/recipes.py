"""Recipes of the study: from logits of candidates to probabilities of the test examples, all choices made on validation examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from study.predictions import Draw, Run
from swag_trainer.calibration.stack import stacking_weights
from swag_trainer.metrics.temperature import PRIOR_STD, fit_temperature, penalised_nll

DROPOUT_NATS = 2.0


@dataclass(frozen=True)
class Outcome:
    """What a recipe predicts.

    Attributes:
        probabilities: Of the test examples. Shape (N, C).
        chosen: What was chosen on the validation examples, in words and numbers.
    """

    probabilities: np.ndarray
    chosen: str


def plain(draw: Draw) -> Callable[[Run], Outcome]:
    """Return a recipe without choices: the average over the draws at temperature 1."""
    return lambda run: Outcome(average(run.logits(draw, "test"), 1.0), draw.name)


def scaled(draw: Draw, prior_std: float = PRIOR_STD) -> Callable[[Run], Outcome]:
    """Return the recipe that fits a temperature on the validation examples."""

    def recipe(run: Run) -> Outcome:
        fitted = fit(run, draw, prior_std)
        return Outcome(average(run.logits(draw, "test"), fitted.temperature), f"T {fitted.temperature:.3f}")

    return recipe


def choice(
    draws: Sequence[Draw], *, dropout_nats: float = DROPOUT_NATS, favourite: Draw | None = None, nats: float = 0.0
) -> Callable[[Run], Outcome]:
    """Return the recipe that chooses among candidates, each with its temperature, by the penalised validation loss.

    Args:
        draws: The candidates.
        dropout_nats: Prior against dropout, for all validation examples together.
        favourite, nats: A candidate that all others have a prior against.
    """

    def recipe(run: Run) -> Outcome:
        fitted = [fit(run, draw, dropout_nats=dropout_nats) for draw in draws]
        count = len(run.data.splits["validation"].labels)
        best = min(fitted, key=lambda each: each.penalised + nats * (each.draw != favourite) / count)
        return Outcome(average(run.logits(best.draw, "test"), best.temperature), f"{best.draw.name}, T {best.temperature:.3f}")

    return recipe


def stacking(draws: Sequence[Draw], penalty: float, *, prior_std: float = PRIOR_STD) -> Callable[[Run], Outcome]:
    """Return the recipe that averages candidates by weights w, the maximum of sum_i log sum_k w_k p_k(y_i) + penalty sum_k log w_k."""

    def recipe(run: Run) -> Outcome:
        fitted = [fit(run, draw, prior_std) for draw in draws]
        labels = run.data.splits["validation"].labels
        likelihoods = np.stack(
            [average(run.logits(each.draw, "validation"), each.temperature)[np.arange(len(labels)), labels] for each in fitted]
        )
        weights = stacking_weights(likelihoods, penalty)
        return _mixture(run, fitted, weights)

    return recipe


def posterior_average(draws: Sequence[Draw], power: float = 1.0) -> Callable[[Run], Outcome]:
    """Return the recipe that averages candidates by their penalised validation likelihood to a power."""

    def recipe(run: Run) -> Outcome:
        fitted = [fit(run, draw) for draw in draws]
        count = len(run.data.splits["validation"].labels)
        return _mixture(run, fitted, softmax([-power * count * each.penalised for each in fitted]))

    return recipe


def pooled(counts: Mapping[Draw, int]) -> Callable[[Run], Outcome]:
    """Return the recipe that averages the first draws of several candidates, all passes alike, with one temperature.

    Args:
        counts: How many draws of each candidate.
    """

    def passes(run: Run, split: str) -> np.ndarray:
        return np.concatenate([run.logits(draw, split)[:count] for draw, count in counts.items()])

    def recipe(run: Run) -> Outcome:
        labels = run.data.splits["validation"].labels
        temperature = fit_temperature(passes(run, "validation").astype(np.float64), labels, prior_std=PRIOR_STD)
        return Outcome(average(passes(run, "test"), temperature), f"T {temperature:.3f}")

    return recipe


def temperature_per_draw(draw: Draw) -> Callable[[Run], Outcome]:
    """Return the recipe that fits a temperature to each draw alone, and then one to their average."""

    def recipe(run: Run) -> Outcome:
        labels = run.data.splits["validation"].labels
        logits = run.logits(draw, "validation").astype(np.float64)
        temperatures = np.array([fit_temperature(each, labels, prior_std=PRIOR_STD) for each in logits])[:, None, None]
        common = fit_temperature(logits / temperatures, labels, prior_std=PRIOR_STD)
        test = run.logits(draw, "test") / temperatures
        return Outcome(average(test, common), f"T {common:.3f} x {temperatures.min():.2f}-{temperatures.max():.2f}")

    return recipe


def without_common_factor(draw: Draw, center: Draw, spread: float) -> Callable[[Run], Outcome]:
    """Return the recipe that divides each draw's logits by their common factor of the center's, and then widens what is left.

    The factor of a draw is the regression coefficient of its logits on the center's, over the validation examples: what a step along a
    "temperature direction" does. To first order this removes that direction from the cloud; the rest is multiplied by sqrt(spread).
    """

    def recipe(run: Run) -> Outcome:
        labels = run.data.splits["validation"].labels
        validation = _centred(run.logits(draw, "validation"))
        middle = _centred(run.logits(center, "validation"))
        factors = (validation * middle).sum((1, 2), keepdims=True) / (middle**2).sum()

        def cleaned(split: str) -> np.ndarray:
            base = _centred(run.logits(center, split))
            return base + spread**0.5 * (_centred(run.logits(draw, split)) / factors - base)

        temperature = fit_temperature(cleaned("validation"), labels, prior_std=PRIOR_STD)
        return Outcome(
            average(cleaned("test"), temperature), f"T {temperature:.3f}, factors {factors.min():.2f}-{factors.max():.2f}"
        )

    return recipe


def distilled(draw: Draw) -> Callable[[Run], Outcome]:
    """Return the recipe that predicts with one adapter, which was trained on what the draws average to at their temperature."""

    def recipe(run: Run) -> Outcome:
        labels, teacher = run.data.splits["validation"].labels, fit(run, draw).temperature
        logits = run.distilled(draw, "validation", teacher).astype(np.float64)
        temperature = fit_temperature(logits, labels, prior_std=PRIOR_STD)
        return Outcome(
            average(run.distilled(draw, "test", teacher), temperature), f"T {temperature:.3f}, teacher's {teacher:.3f}"
        )

    return recipe


@dataclass(frozen=True)
class Fitted:
    """A candidate with its temperature.

    Attributes:
        draw: The candidate.
        temperature: Fitted on the validation examples.
        penalised: Validation loss with the priors of temperature and dropout, in nats per example.
    """

    draw: Draw
    temperature: float
    penalised: float


def fit(run: Run, draw: Draw, prior_std: float = PRIOR_STD, *, dropout_nats: float = DROPOUT_NATS) -> Fitted:
    """Fit a candidate's temperature on all validation examples; what was fitted for a run is not fitted again."""
    labels = run.data.splits["validation"].labels
    if (draw, prior_std) not in run.fitted:
        logits = run.logits(draw, "validation").astype(np.float64)
        temperature = fit_temperature(logits, labels, prior_std=prior_std)
        run.fitted[draw, prior_std] = temperature, penalised_nll(logits, labels, temperature, prior_std=prior_std)
    temperature, penalised = run.fitted[draw, prior_std]
    return Fitted(draw, temperature, penalised + dropout_nats * draw.dropout / len(labels))


def average(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the average over draws of softmax(logits / T). Of shape (S, N, C), shape (N, C)."""
    return softmax(logits.astype(np.float64) / temperature, axis=-1).mean(0)


def _mixture(run: Run, fitted: Sequence[Fitted], weights: np.ndarray) -> Outcome:
    probabilities = sum(
        weight * average(run.logits(each.draw, "test"), each.temperature) for weight, each in zip(weights, fitted, strict=True)
    )
    return Outcome(probabilities, ", ".join(f"{each.draw.name} {w:.2f}" for each, w in zip(fitted, weights, strict=True)))


def _centred(logits: np.ndarray) -> np.ndarray:
    return logits.astype(np.float64) - logits.mean(-1, keepdims=True)
