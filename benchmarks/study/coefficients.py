"""Recipes of the study over few coefficients: NOLA and LoRA-XS, on the same batches and at the same number of steps as MAP."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from study.predictions import NUM_SAMPLES, Draw, Run
from study.recipes import Outcome, average
from study.training import SCHEDULES, batch_order, branching_step, build_model
from swag_trainer import Evenly, LoraXs, Nola, train_coefficients
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.schedule import collection_steps
from swag_trainer.metrics.temperature import fit_temperature
from swag_trainer.posterior.coefficient_map import CoefficientMethod
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.moments import RunningMoments

COLLECTED = Draw("mean")


@dataclass(frozen=True)
class Method:
    """What trains, and how fast.

    Attributes:
        name: For the files that are kept, whose names have the rate too.
        coefficients: `Nola` or `LoraXs`.
        rank: Of LoRA's matrices.
        learning_rate: At the end of the warm-up. It decays as MAP's until collection begins, and is held from there on, as SWAG's.
    """

    name: str
    coefficients: CoefficientMethod
    rank: int
    learning_rate: float

    @property
    def kept_as(self) -> str:
        """What the files are called: another rate is another training."""
        return f"{self.name}-{self.learning_rate:g}"


def averaged(method: Method, scale: float) -> Callable[[Run], Outcome]:
    """Return the recipe that trains coefficients, draws from the Gaussian of their snapshots, and fits a temperature.

    Args:
        method: The method.
        scale: Factor of the covariance; 0 for the mean alone (SWA).
    """

    def recipe(run: Run) -> Outcome:
        logits = {split: predicted(run, method, scale, split) for split in ("validation", "test")}
        temperature = fit_temperature(logits["validation"], run.data.splits["validation"].labels)
        return Outcome(average(logits["test"], temperature), f"T {temperature:.3f}")

    return recipe


def predicted(run: Run, method: Method, scale: float, split: str) -> np.ndarray:
    """Return the logits of a split's examples at draws of the coefficients. Shape (S, N, C)."""

    def compute() -> np.ndarray:
        gaussian = gaussian_of(torch.from_numpy(run.kept(method.kept_as, lambda: train(run, method).numpy())))
        with_coefficients = copy.copy(run)
        with_coefficients.weights = new_weights(run, method)
        vectors = gaussian.sample(NUM_SAMPLES if scale else 1, seed=run.seed, scale=scale)
        return with_coefficients.predict(COLLECTED, vectors, split)[0]

    return run.kept(f"{method.kept_as}.scale-{scale:g}.{split}", compute).astype(np.float64)


def gaussian_of(snapshots: Tensor) -> LowRankGaussian:
    """Return SWAG's Gaussian of snapshots. Shape (n, c)."""
    moments = RunningMoments(snapshots.shape[1], min(COLLECTED.rank, len(snapshots)))
    for snapshot in snapshots:
        moments.fold(snapshot)
    return LowRankGaussian(moments.mean, moments.variance, moments.deviations)


def new_weights(run: Run, method: Method) -> AdapterWeights:
    """Return the coefficients and the head of a new model, as training begins with them."""
    model = build_model(run.base, run.data.num_labels, seed=run.seed, frozen_layers=run.frozen_layers, rank=method.rank).eval()
    train_coefficients(model, method.coefficients)
    return AdapterWeights(model)


def train(run: Run, method: Method) -> Tensor:
    """Return the snapshots of coefficients and head that are collected. Shape (n, c)."""
    weights, rows = new_weights(run, method), run.data.splits["train"]
    model, snapshots = weights.model.train(), []
    optimizer = torch.optim.AdamW(weights.parameters(), lr=method.learning_rate, weight_decay=0.0)
    due = collection_steps(
        Evenly(start=COLLECTED.start, snapshots=COLLECTED.snapshots), max_steps=run.steps, steps_per_epoch=None
    )
    torch.manual_seed(run.seed)
    for step, chosen in enumerate(batch_order(rows, run.steps, seed=run.seed), start=1):
        schedule = SCHEDULES["decay" if step <= branching_step(run.steps) else "held"]
        optimizer.param_groups[0]["lr"] = method.learning_rate * schedule(step, run.steps)
        logits = model(**rows.padded(chosen)).logits
        functional.cross_entropy(logits, torch.from_numpy(rows.labels[chosen])).backward()
        torch.nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in due:
            snapshots.append(weights.layout.flatten(weights.read()))
    return torch.stack(snapshots)


METHODS = {"NOLA": Method("nola", Nola(500), 8, 5e-3), "LoRA-XS": Method("lora-xs", LoraXs(), 25, 5e-3)}
COEFFICIENTS: dict[str, Callable[[Run], Outcome]] = {
    f"{title}, {name}, temperature": averaged(method, scale)
    for title, method in METHODS.items()
    for name, scale in (("SWA", 0.0), ("SWAG", 1.0))
}
