"""Training of the study: one beginning per task and seed, several learning-rate schedules from there, the adapter of every kept step.

Until collection may begin (`START` of the run) all schedules are the same, so this part is trained once. Its end is stored with the
optimizer's state and the random state, and every schedule continues from there, as if it had been trained alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import set_seed

from study.tasks import Examples, TaskData, upper_layers
from swag_trainer import Evenly
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.schedule import collection_steps

START = 0.3
WARMUP = 0.06
KEPT = 100
EVALUATIONS = 20
BATCH_SIZE = 16


def _decay(step: int, steps: int) -> float:
    """The Trainer's default: linear warm-up, then linearly to zero; a factor of the rate for the update to ``step``."""
    warmup = max(1, int(WARMUP * steps))
    return min(step / warmup, (steps - step + 1) / (steps - warmup), 1.0)


# The rate of the update to `step` as a factor of the base rate, from the branching on.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "held": lambda step, steps: _decay(branching_step(steps), steps),
    "decay": _decay,
    "halved": lambda step, steps: _decay(branching_step(steps), steps) / 2,
    "floor": lambda step, steps: max(_decay(step, steps), 0.25 * _decay(branching_step(steps), steps)),
    "smoothed": _decay,
}
LABEL_SMOOTHING = {"smoothed": 0.1}


@dataclass(frozen=True)
class Optimization:
    """How a run is optimised.

    Attributes:
        optimizer: "adamw", or "sgd" with a running mean of the gradients (momentum .9, dampening .9), whose rates are those of IVON.
        learning_rate: At the end of the warm-up.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 5e-3

    def of(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9, dampening=0.9)


def branching_step(steps: int) -> int:
    """Return the last step that all schedules share."""
    return max(1, round(START * steps))


def kept_steps(steps: int) -> set[int]:
    """Return the steps whose adapter is kept: those of the default schedule, those that are evaluated, and about a hundred more."""
    collected = collection_steps(Evenly(), max_steps=steps, steps_per_epoch=None)
    return {*collected, *evaluated_steps(steps), *range(1, steps + 1, max(1, steps // KEPT)), branching_step(steps), steps}


def evaluated_steps(steps: int) -> set[int]:
    """Return the steps at which the validation loss is measured."""
    return {*range(max(1, steps // EVALUATIONS), steps + 1, max(1, steps // EVALUATIONS)), steps}


@dataclass
class Trajectory:
    """A training run as it was kept.

    Attributes:
        steps: The kept steps, ascending.
        weights: The adapter after each, float16. Shape (len(steps), P).
        validation_nll: Validation loss by step, of some of them.
        seconds: What training took.
    """

    steps: list[int]
    weights: Tensor
    validation_nll: dict[int, float]
    seconds: float

    def at(self, step: int) -> Tensor:
        """Return the weights after a kept step. Shape (P,), float32."""
        return self.weights[self.steps.index(step)].float()

    def nearest(self, step: float) -> int:
        """Return the kept step that is nearest."""
        return min(self.steps, key=lambda kept: abs(kept - step))

    def save(self, path: Path) -> None:
        """Write it so that a file that exists is complete."""
        document = {"steps": self.steps, "validation_nll": self.validation_nll, "seconds": self.seconds}
        save_file({"weights": self.weights.half()}, path.with_suffix(".part"), metadata={"run": json.dumps(document)})
        path.with_suffix(".part").rename(path)

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Read what `save` wrote."""
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            document = json.loads(json.loads(file.read(length))["__metadata__"]["run"])
        losses = {int(step): loss for step, loss in document["validation_nll"].items()}
        return cls(document["steps"], load_file(path)["weights"], losses, document["seconds"])

    def followed_by(self, other: Trajectory) -> Trajectory:
        """Return the whole run of which this is the beginning."""
        return Trajectory(
            self.steps + other.steps,
            torch.cat([self.weights, other.weights]),
            self.validation_nll | other.validation_nll,
            self.seconds + other.seconds,
        )


def build_model(base: Path | str, num_labels: int, *, seed: int, frozen_layers: int, rank: int = 8) -> PeftModel:
    """Return the upper layers of the base model with new LoRA matrices and a new head, which the seed decides."""
    set_seed(seed)
    model = upper_layers(base, num_labels, frozen_layers=frozen_layers)
    lora = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, lora_dropout=0.1, target_modules=["query", "value"])
    return get_peft_model(model, lora)


def batch_order(examples: Examples, steps: int, *, seed: int) -> list[np.ndarray]:
    """Return the indices of every training batch: epochs in random order, batches of similar length as the Trainer's group_by_length."""
    generator = np.random.default_rng(seed)
    lengths = np.array([len(row) for row in examples.hidden])
    order: list[np.ndarray] = []
    while len(order) < steps:
        shuffled = generator.permutation(len(lengths))
        groups = np.split(shuffled, range(4 * BATCH_SIZE, len(shuffled), 4 * BATCH_SIZE))
        in_order = np.concatenate([group[np.argsort(-lengths[group], kind="stable")] for group in groups])
        batches = np.split(in_order, range(BATCH_SIZE, len(in_order), BATCH_SIZE))
        order.extend(batches[index] for index in generator.permutation(len(batches)))
    return order[:steps]


def validation_nll(model: PeftModel, examples: Examples) -> float:
    """Return the mean negative log-likelihood of labelled examples, without dropout; the model is left in training mode."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for chosen, batch in examples.batches():
            labels = torch.from_numpy(examples.labels[chosen])
            total += functional.cross_entropy(model(**batch).logits, labels, reduction="sum").item()
    model.train()
    return total / len(examples.texts)


def train_run(
    base: Path | str,
    data: TaskData,
    folder: Path,
    *,
    steps: int,
    seed: int,
    optimization: Optimization,
    frozen_layers: int,
    schedules: list[str],
) -> None:
    """Train what is not there yet: the common beginning, then each schedule. What is there already is left as it is."""
    missing = [name for name in schedules if not (folder / f"{name}.safetensors").exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    order, split = batch_order(data.splits["train"], steps, seed=seed), branching_step(steps)
    state = folder / "branching.pt"
    for name in ["beginning", *missing]:
        if (folder / f"{name}.safetensors").exists() and state.exists():
            continue
        model = build_model(base, data.num_labels, seed=seed, frozen_layers=frozen_layers)
        weights = AdapterWeights(model)
        optimizer = optimization.of(weights.parameters())
        first, last, schedule = (1, split, _decay) if name == "beginning" else (split + 1, steps, SCHEDULES[name])
        if name != "beginning":
            begun = torch.load(state, weights_only=True)
            weights.write(weights.layout.unflatten(begun["weights"]))
            optimizer.load_state_dict(begun["optimizer"])
            torch.set_rng_state(begun["random"])
        rates = {step: optimization.learning_rate * schedule(step, steps) for step in range(first, last + 1)}
        run = _train(model, weights, optimizer, data, order, rates, steps, LABEL_SMOOTHING.get(name, 0.0))
        if name == "beginning":
            vector = weights.layout.flatten(weights.read()).clone()
            torch.save({"weights": vector, "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, state)
        run.save(folder / f"{name}.safetensors")


def _train(
    model: PeftModel,
    weights: AdapterWeights,
    optimizer: torch.optim.Optimizer,
    data: TaskData,
    order: list[np.ndarray],
    rates: Mapping[int, float],
    steps: int,
    label_smoothing: float,
) -> Trajectory:
    kept, evaluated, train = kept_steps(steps), evaluated_steps(steps), data.splits["train"]
    snapshots: dict[int, Tensor] = {}
    losses: dict[int, float] = {}
    begun = time.perf_counter()
    model.train()
    for step, rate in rates.items():
        optimizer.param_groups[0]["lr"] = rate
        chosen = order[step - 1]
        logits = model(**train.padded(chosen)).logits
        labels = torch.from_numpy(train.labels[chosen])
        functional.cross_entropy(logits, labels, label_smoothing=label_smoothing).backward()
        torch.nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in kept:
            snapshots[step] = weights.layout.flatten(weights.read()).half()
        if step in evaluated:
            losses[step] = validation_nll(model, data.splits["validation"])
    return Trajectory(list(snapshots), torch.stack(list(snapshots.values())), losses, time.perf_counter() - begun)
