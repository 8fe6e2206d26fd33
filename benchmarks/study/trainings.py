"""Recipes of further trainings on the same examples: ensembles and mixtures of three runs, and runs by SGD instead of AdamW."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from study.predictions import Draw, Run
from study.recipes import Outcome, average, scaled
from study.training import Optimization
from swag_trainer.metrics.temperature import fit_temperature

NUM_MEMBERS = 3
# Between the seeds of members, more than there are seeds in the study.
_STRIDE = 1000
# The rate of IVON, whose mean it follows but for the noise.
_SGD = Optimization("sgd", 1.0)
_MAP, _BEST, _MEAN, _SWAG = (
    Draw("map", collected="decay"),
    Draw("best", collected="decay"),
    Draw("mean"),
    Draw("mean", scale=1.0),
)


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
    other.train(["held", "decay"])
    return other


def by_sgd(draw: Draw) -> Callable[[Run], Outcome]:
    """Return the recipe of a draw with a temperature, of a run by SGD from the same beginning over the same batches."""
    return lambda run: scaled(draw)(trained(run, "sgd", seed=run.seed, optimization=_SGD))


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


MEMBERS: dict[str, Callable[[Run], Outcome]] = {
    f"ensemble of {NUM_MEMBERS}, temperature": mixture(_MAP),
    f"ensemble of {NUM_MEMBERS}, best validation, temperature": mixture(_BEST),
    f"MultiSWA of {NUM_MEMBERS}, temperature": mixture(_MEAN),
    f"MultiSWAG of {NUM_MEMBERS}, temperature": mixture(_SWAG),
}
SGD: dict[str, Callable[[Run], Outcome]] = {
    "MAP by SGD, temperature": by_sgd(_MAP),
    "best-validation MAP by SGD, temperature": by_sgd(_BEST),
    "SWA by SGD, temperature": by_sgd(_MEAN),
    "SWAG by SGD, temperature": by_sgd(_SWAG),
}
