"""Recipes of the study: from logits of candidates to probabilities of the test examples, all choices made on validation examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from study.predictions import Draw, Run
from swag_trainer.metrics.temperature import fit_temperature, penalised_nll

PRIOR_STD = 0.2
DROPOUT_NATS = 2.0
OLD_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
OLD_PRIOR_STD = 0.5

MAP, BEST, BEST_HELD = Draw("map", collected="decay"), Draw("best", collected="decay"), Draw("best")
MEAN, TAIL, LAST = Draw("mean"), Draw("tail"), Draw("last")
SWAG_MEAN, SWAG_LAST = Draw("mean", scale=1.0), Draw("last", scale=1.0)
MASKED_MEAN, MASKED_LAST = Draw("mean", scale=1.0, dropout=True), Draw("last", scale=1.0, dropout=True)
MC_MAP, MC_BEST = Draw("map", dropout=True, collected="decay"), Draw("best", dropout=True, collected="decay")
CANDIDATES = (MEAN, TAIL, LAST, SWAG_MEAN, SWAG_LAST, MASKED_MEAN, MASKED_LAST)


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


def choice(draws: Sequence[Draw], *, dropout_nats: float = DROPOUT_NATS) -> Callable[[Run], Outcome]:
    """Return the recipe that chooses among candidates, each with its temperature, by the penalised validation loss."""

    def recipe(run: Run) -> Outcome:
        fitted = [fit(run, draw, dropout_nats=dropout_nats) for draw in draws]
        best = min(fitted, key=lambda each: each.penalised)
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


def stacking_weights(likelihoods: np.ndarray, penalty: float, *, iterations: int = 500) -> np.ndarray:
    """Return the weights of penalised stacking by expectation maximisation. Of likelihoods (k, N), shape (k,)."""
    weights = np.full(len(likelihoods), 1 / len(likelihoods))
    for _ in range(iterations):
        joint = weights[:, None] * np.maximum(likelihoods, 1e-300)
        weights = (joint / joint.sum(0)).sum(1) + penalty
        weights /= weights.sum()
    return weights


def old_tune(run: Run) -> Outcome:
    """The `tune` of 0.3: seven scales, each with a temperature under a wide prior, chosen on half of the validation examples."""
    labels = run.data.splits["validation"].labels
    order = np.random.default_rng(run.seed).permutation(len(labels))
    half = order[: len(order) - len(order) // 2]
    found = []
    for scale in OLD_SCALES:
        logits = run.logits(Draw("mean", scale=scale), "validation")[:, half].astype(np.float64)
        temperature = fit_temperature(logits, labels[half], prior_std=OLD_PRIOR_STD)
        found.append((penalised_nll(logits, labels[half], temperature, prior_std=OLD_PRIOR_STD), scale, temperature))
    _, scale, temperature = min(found)
    logits = run.logits(Draw("mean", scale=scale), "test")
    return Outcome(average(logits, temperature), f"scale {scale:g}, T {temperature:.3f}")


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


RECIPES: dict[str, Callable[[Run], Outcome]] = {
    "MAP": plain(MAP),
    "best-validation MAP": plain(BEST),
    "MAP, temperature": scaled(MAP),
    "best-validation MAP, temperature": scaled(BEST),
    "MC dropout, temperature": scaled(MC_MAP),
    "best-validation MC dropout, temperature": scaled(MC_BEST),
    "rival that chooses": choice((MAP, BEST, MC_MAP)),
    "SWA": plain(MEAN),
    "SWA, temperature": scaled(MEAN),
    "SWAG, untuned": plain(SWAG_MEAN),
    "SWAG, temperature": scaled(SWAG_MEAN),
    "old tune": old_tune,
    "new tune, choosing": choice(CANDIDATES),
    "new tune, stacking": stacking(CANDIDATES, 1.0),
}

IDEAS: dict[str, Callable[[Run], Outcome]] = {
    "MAP, temperature with prior sd .5": scaled(MAP, OLD_PRIOR_STD),
    "SWAG, temperature with prior sd .5": scaled(SWAG_MEAN, OLD_PRIOR_STD),
    "stacking, penalty .2": stacking(CANDIDATES, 0.2),
    "stacking, penalty 5": stacking(CANDIDATES, 5.0),
    "equal average of all candidates": stacking(CANDIDATES, 1e6),
    "average by validation likelihood": posterior_average(CANDIDATES),
    "average by validation likelihood^.3": posterior_average(CANDIDATES, 0.3),
    "stacking without dropout": stacking(CANDIDATES[:5], 1.0),
    "stacking without dropout, prior sd .1": stacking(CANDIDATES[:5], 1.0, prior_std=0.1),
    "equal average of SWAG at mean and last": stacking((SWAG_MEAN, SWAG_LAST), 1e6),
    "MAP, temperature with prior sd .1": scaled(MAP, 0.1),
    "SWAG, temperature with prior sd .1": scaled(SWAG_MEAN, 0.1),
    "pooled, 10 passes": pooled(dict(zip(CANDIDATES, (1, 1, 1, 2, 2, 2, 1), strict=True))),
    "pooled, 43 passes": pooled(dict(zip(CANDIDATES, (1, 1, 1, 10, 10, 10, 10), strict=True))),
    "pooled, three centers": pooled(dict.fromkeys(CANDIDATES[:3], 1)),
    "pooled, SWAG at mean and last, 10 passes": pooled({SWAG_MEAN: 5, SWAG_LAST: 5}),
    "choosing without dropout": choice(CANDIDATES[:5]),
    "choosing without the prior against dropout": choice(CANDIDATES, dropout_nats=0.0),
    "choosing among centers": choice(CANDIDATES[:3]),
    "choosing, best-validation step as a center": choice((*CANDIDATES, BEST_HELD)),
    "tail, temperature": scaled(TAIL),
    "last, temperature": scaled(LAST),
    "SWAG at last, temperature": scaled(SWAG_LAST),
    "SWAG and dropout, temperature": scaled(MASKED_MEAN),
    "SWAG and dropout at last, temperature": scaled(MASKED_LAST),
    "temperature per draw": temperature_per_draw(SWAG_MEAN),
    "without common factor": without_common_factor(SWAG_MEAN, MEAN, 1.0),
    "without common factor, spread 2": without_common_factor(SWAG_MEAN, MEAN, 2.0),
    "without common factor, spread 4": without_common_factor(SWAG_MEAN, MEAN, 4.0),
}

# Each costs passes of its own over validation and test examples.
VARIANTS: dict[str, Callable[[Run], Outcome]] = {
    "SWAG of the head, dropout below, temperature": scaled(Draw("mean", scale=1.0, dropout=True, head_only=True)),
    "SWA from .5, temperature": scaled(Draw("mean", start=0.5)),
    "SWA from .7, temperature": scaled(Draw("mean", start=0.7)),
    "SWAG from .5, temperature": scaled(Draw("mean", scale=1.0, start=0.5)),
    "SWAG of 15 snapshots, temperature": scaled(Draw("mean", scale=1.0, snapshots=15, rank=15)),
    "SWAG of 60 snapshots, K 20, temperature": scaled(Draw("mean", scale=1.0, snapshots=60)),
    "SWAG, K 5, temperature": scaled(Draw("mean", scale=1.0, rank=5)),
    "SWAG, scale 4, temperature": scaled(Draw("mean", scale=4.0)),
}

# These need trainings of their own, see `SCHEDULES`.
RATES: dict[str, Callable[[Run], Outcome]] = {
    f"{name}, rate {rate}, temperature": scaled(Draw(center, scale, collected=rate))
    for rate in ("halved", "floor")
    for name, center, scale in (("SWA", "mean", 0.0), ("last", "last", 0.0), ("SWAG", "mean", 1.0))
}
SMOOTHING: dict[str, Callable[[Run], Outcome]] = {
    "MAP, label smoothing .1": plain(Draw("map", collected="smoothed")),
    "MAP, label smoothing .1, temperature": scaled(Draw("map", collected="smoothed")),
}
DISTILLATION: dict[str, Callable[[Run], Outcome]] = {
    "SWAG, distilled, temperature": distilled(SWAG_MEAN),
    "SWAG and dropout, distilled, temperature": distilled(MASKED_MEAN),
}
