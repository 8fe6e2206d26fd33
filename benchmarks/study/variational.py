"""Recipes of the study that train a Gaussian: BLoB and IVON, on the same batches and at the same number of steps as MAP."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from study.predictions import NUM_SAMPLES, Draw, Run
from study.recipes import Outcome, average
from study.training import BATCH_SIZE, SCHEDULES, batch_order
from swag_trainer import Blob, Ivon
from swag_trainer.collection.variational import VariationalMethod
from swag_trainer.metrics.temperature import fit_temperature
from swag_trainer.posterior.design import draw_noise


def variational(name: str, method: VariationalMethod, learning_rate: float) -> Callable[[Run], Outcome]:
    """Return the recipe that trains by a method, draws ten times and fits a temperature.

    Args:
        name: For the files that are kept, whose names have the rate too.
        method: `Blob` or `Ivon`.
        learning_rate: At the end of the warm-up; it falls linearly to zero, as MAP's.
    """

    kept_as = f"{name}-{learning_rate:g}"

    def recipe(run: Run) -> Outcome:
        gaussian = torch.from_numpy(run.kept(kept_as, lambda: train(run, method, learning_rate).numpy()))
        noise, _ = draw_noise(NUM_SAMPLES, num_weights=gaussian.shape[1], rank=0, seed=run.seed, design="matched")
        vectors = gaussian[0] + gaussian[1] * noise
        logits = {
            split: run.kept(f"{kept_as}.{split}", lambda split=split: run.predict(Draw("map"), vectors, split)[0]).astype(
                np.float64
            )
            for split in ("validation", "test")
        }
        temperature = fit_temperature(logits["validation"], run.data.splits["validation"].labels)
        return Outcome(average(logits["test"], temperature), f"T {temperature:.3f}")

    return recipe


def train(run: Run, method: VariationalMethod, learning_rate: float) -> Tensor:
    """Return mean and standard deviation of every weight after training. Shape (2, P)."""
    weights, rows = run.new_weights(), run.data.splits["train"]
    model, count = weights.model.train(), len(rows.texts)
    torch.manual_seed(run.seed)
    optimizer = method.optimizer(
        weights,
        [{"params": weights.parameters(), "weight_decay": 0.0}],
        learning_rate=learning_rate,
        num_examples=count,
        epoch=math.ceil(count / BATCH_SIZE),
    )
    for step, chosen in enumerate(batch_order(rows, run.steps, seed=run.seed), start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * SCHEDULES["decay"](step, run.steps)
        optimizer.begin_step()
        logits = model(**rows.padded(chosen)).logits
        functional.cross_entropy(logits, torch.from_numpy(rows.labels[chosen])).backward()
        torch.nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
        with torch.no_grad():
            optimizer.end_backward()
        optimizer.step()
        model.zero_grad()
    variances = {key: optimizer.variance(parameter) for key, parameter in weights.named_parameters().items()}
    optimizer.close()
    return torch.stack([weights.layout.flatten(weights.read()), weights.layout.flatten(variances).sqrt()]).clone()


BLOB: dict[str, Callable[[Run], Outcome]] = {
    "BLoB, temperature": variational("blob", Blob(), 5e-3),
    "BLoB, KL spread evenly, temperature": variational("blob-uniform", Blob(kl_weights="uniform"), 5e-3),
}
# Chosen on the validation examples of the first seed of two tasks, among learning rates of .3 to 3, initial Hessians of .001 to 1, and sample sizes from that of the data to 1e6.
IVON: dict[str, Callable[[Run], Outcome]] = {"IVON, temperature": variational("ivon", Ivon(), 1.0)}
