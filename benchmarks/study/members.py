"""Recipes of several trainings: a deep ensemble and mixtures of three runs on the same examples, with other beginnings and batches.

They cost three trainings where all other recipes cost one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from study.predictions import Draw, Run
from study.recipes import Outcome, average
from study.training import train_run
from swag_trainer.metrics.temperature import fit_temperature

NUM_MEMBERS = 3
# Between the seeds of members, more than there are seeds in the study.
_STRIDE = 1000


def members_of(run: Run) -> list[Run]:
    """Return the run and further ones on its examples, which are trained where they are not there yet."""
    members = [run]
    for number in range(1, NUM_MEMBERS):
        seed, folder = run.seed + number * _STRIDE, run.folder / f"member-{number}"
        train_run(
            run.base,
            run.data,
            folder,
            steps=run.steps,
            seed=seed,
            learning_rate=run.learning_rate,
            frozen_layers=run.frozen_layers,
            schedules=["held", "decay"],
        )
        members.append(
            Run(
                folder,
                run.data,
                run.base,
                steps=run.steps,
                seed=seed,
                frozen_layers=run.frozen_layers,
                learning_rate=run.learning_rate,
            )
        )
    return members


def mixture(draw: Draw) -> Callable[[Run], Outcome]:
    """Return the recipe that averages the draws of all members, all alike, and fits one temperature on the validation examples."""

    def recipe(run: Run) -> Outcome:
        members = members_of(run)

        def logits(split: str) -> np.ndarray:
            return np.concatenate([member.logits(draw, split) for member in members]).astype(np.float64)

        temperature = fit_temperature(logits("validation"), run.data.splits["validation"].labels)
        return Outcome(average(logits("test"), temperature), f"{len(logits('test'))} passes, T {temperature:.3f}")

    return recipe


MEMBERS: dict[str, Callable[[Run], Outcome]] = {
    f"ensemble of {NUM_MEMBERS}, temperature": mixture(Draw("map", collected="decay")),
    f"ensemble of {NUM_MEMBERS}, best validation, temperature": mixture(Draw("best", collected="decay")),
    f"MultiSWA of {NUM_MEMBERS}, temperature": mixture(Draw("mean")),
    f"MultiSWAG of {NUM_MEMBERS}, temperature": mixture(Draw("mean", scale=1.0)),
}
