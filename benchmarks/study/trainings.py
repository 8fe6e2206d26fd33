"""Recipes of several trainings: ensembles and mixtures of three, and runs by SGD instead of AdamW."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from study.catalogue import new_tune
from study.predictions import Draw, Run
from study.recipes import Outcome, average, fit, scaled
from study.training import Optimization
from swag_trainer.metrics.temperature import fit_temperature

NUM_MEMBERS = 3
NUM_SEEDS = 5
# Between the seeds of members, more than there are seeds in the study.
_STRIDE = 1000
# The rate of IVON, whose mean it follows but for the noise, and others.
SGD_RATE, OTHER_RATES = 1.0, (0.3, 3.0)
_MAP, _BEST = Draw("map", collected="decay"), Draw("best", collected="decay")
_MEAN, _SWAG = Draw("mean"), Draw("mean", scale=1.0)
_SCHEDULES = ["held", "decay"]


def trained(run: Run, name: str, *, seed: int, optimization: Optimization) -> Run:
    """Return another run on the examples of a run, trained where it is not there yet."""
    other = Run(
        run.folder / name,
        run.data,
        run.base,
        steps=run.steps,
        seed=seed,
        frozen_layers=run.frozen_layers,
        optimization=optimization,
    )
    other.train(_SCHEDULES)
    return other


def by_sgd(recipe: Callable[[Run], Outcome], rate: float = SGD_RATE) -> Callable[[Run], Outcome]:
    """Return a recipe of a run by SGD from the same beginning over the same batches."""
    return lambda run: recipe(trained(run, f"sgd-{rate:g}", seed=run.seed, optimization=Optimization("sgd", rate)))


def mixture(draw: Draw) -> Callable[[Run], Outcome]:
    """Return the recipe that averages the draws of the run and of two others, all alike, and fits one temperature.

    The others begin with other weights and see the examples in another order. Together they cost three trainings, where all other recipes
    cost one.
    """

    def recipe(run: Run) -> Outcome:
        members = [run]
        for number in range(1, NUM_MEMBERS):
            seed = run.seed + number * _STRIDE
            members.append(trained(run, f"member-{number}", seed=seed, optimization=run.optimization))

        def logits(split: str) -> np.ndarray:
            return np.concatenate([member.logits(draw, split) for member in members]).astype(np.float64)

        temperature = fit_temperature(logits("validation"), run.data.splits["validation"].labels)
        return Outcome(average(logits("test"), temperature), f"{len(logits('test'))} passes, T {temperature:.3f}")

    return recipe


def mixture_of_seeds(draw: Draw) -> Callable[[Run], Outcome]:
    """Return the recipe that averages the draws of the run and of the runs of the next seeds, each at its own temperature.

    The members were trained on examples of their own, so that together they saw up to three times as many as every other recipe; the
    temperature of each is fitted to its own validation examples, which another may have been trained on. Every run is in
    three of the five mixtures.
    """

    def recipe(run: Run) -> Outcome:
        members = [run, *run.others]
        for member in run.others:
            member.train(_SCHEDULES)
        temperatures = [fit(member, draw).temperature for member in members]
        logits = [member.logits(draw, "test") / fitted for member, fitted in zip(members, temperatures, strict=True)]
        return Outcome(average(np.concatenate(logits), 1.0), ", ".join(f"T {fitted:.3f}" for fitted in temperatures))

    return recipe


def next_seeds(seed: int) -> list[int]:
    """Return the seeds whose runs make a mixture with the run of one."""
    return [(seed + number) % NUM_SEEDS for number in range(1, NUM_MEMBERS)]


MEMBERS: dict[str, Callable[[Run], Outcome]] = {
    f"ensemble of {NUM_MEMBERS}, temperature": mixture(_MAP),
    f"ensemble of {NUM_MEMBERS}, best validation, temperature": mixture(_BEST),
    f"MultiSWA of {NUM_MEMBERS}, temperature": mixture(_MEAN),
    f"MultiSWAG of {NUM_MEMBERS}, temperature": mixture(_SWAG),
}
SEEDS: dict[str, Callable[[Run], Outcome]] = {
    f"ensemble of the runs of {NUM_MEMBERS} seeds, temperature": mixture_of_seeds(_MAP),
    f"ensemble of the runs of {NUM_MEMBERS} seeds, best validation, temperature": mixture_of_seeds(_BEST),
    f"MultiSWA of the runs of {NUM_MEMBERS} seeds, temperature": mixture_of_seeds(_MEAN),
    f"MultiSWAG of the runs of {NUM_MEMBERS} seeds, temperature": mixture_of_seeds(_SWAG),
}
SGD: dict[str, Callable[[Run], Outcome]] = {
    "MAP by SGD, temperature": by_sgd(scaled(_MAP)),
    "best-validation MAP by SGD, temperature": by_sgd(scaled(_BEST)),
    "SWA by SGD, temperature": by_sgd(scaled(_MEAN)),
    "SWAG by SGD, temperature": by_sgd(scaled(_SWAG)),
    "new tune by SGD": by_sgd(new_tune),
}
SGD_RATES: dict[str, Callable[[Run], Outcome]] = {
    f"{name} by SGD, rate {rate:g}, temperature": by_sgd(scaled(draw), rate)
    for rate in OTHER_RATES
    for name, draw in (("MAP", _MAP), ("SWAG", _SWAG))
}
