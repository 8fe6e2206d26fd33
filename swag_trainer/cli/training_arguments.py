"""From the options of `train` to what the Trainer takes: the SwagCallback and the TrainingArguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from swag_trainer.cli.training_options import DEFAULT_STEPS, TrainOptions
from swag_trainer.collection.callback import SwagCallback
from swag_trainer.collection.schedule import Evenly, Every, Schedule
from swag_trainer.errors import SwagError

# TrainingArguments that an option of the command sets, by the name of that option.
_OWN = {
    "output_dir": "output",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "learning_rate": "learning-rate",
    "per_device_train_batch_size": "batch-size",
    "seed": "seed",
    "save_strategy": "save-steps",
    "save_steps": "save-steps",
    "eval_strategy": "eval",
    "eval_steps": "eval-steps",
    "load_best_model_at_end": "eval",
    "metric_for_best_model": "eval",
    "greater_is_better": "eval",
    "resume_from_checkpoint": "resume",
}
# The gradients' running mean: dampening keeps the length of a step, whatever the momentum.
_SGD = {"optim": "sgd", "optim_args": "momentum=0.9,dampening=0.9"}


def swag_callback(options: TrainOptions) -> SwagCallback:
    """Return the callback that collects.

    Raises:
        SwagError: The learning rate of the collection is not one.
        ValueError: A schedule or a rank that cannot be.
    """
    rate: Any = {"hold": "hold", "schedule": None}.get(options.collection_learning_rate, options.collection_learning_rate)
    if isinstance(rate, str) and rate != "hold":
        try:
            rate = float(rate)
        except ValueError as error:
            raise SwagError(f"--collection-learning-rate is a number, 'hold' or 'schedule', got {rate!r}.") from error
    schedule: Schedule = Evenly(snapshots=options.snapshots, start=options.start)
    if options.every_steps is not None or options.every_epochs is not None:
        schedule = Every(steps=options.every_steps, epochs=options.every_epochs, start=options.start)
    return SwagCallback(
        schedule,
        rank=options.rank,
        learning_rate=rate,
        final_weights=options.final_weights,
        low_precision="upcast",
        ood_features=True,
    )


def training_arguments(options: TrainOptions, folder: Path, seed: int) -> TrainingArguments:
    """Return the Trainer's arguments for one seed.

    Raises:
        SwagError: ``--training`` is not a JSON object of TrainingArguments, or sets what an option sets.
    """
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": options.peak_learning_rate,
        "per_device_train_batch_size": options.batch_size,
        "seed": seed,
        **_length(options),
        **_checkpoints(options),
        **(_SGD if options.optimizer == "sgd" else {}),
    }
    usual = {
        "warmup_steps": 0.06,
        "train_sampling_strategy": "group_by_length",
        "weight_decay": 0.0,
        "per_device_eval_batch_size": 32,
        "logging_strategy": "steps",
        "logging_steps": 10,
        "report_to": [],
        "dataloader_pin_memory": False,
        "disable_tqdm": True,  # the command has a bar of its own
    }
    try:
        more = json.loads(options.training or "{}")
        if not isinstance(more, dict):
            raise ValueError("it is not a JSON object")
        taken = sorted(set(more) & set(_OWN))
        if taken:
            raise ValueError(f"{taken[0]!r} has an option of its own, --{_OWN[taken[0]]}")
        if options.optimizer == "sgd" and set(more) & set(_SGD):
            raise ValueError("--optimizer sgd sets 'optim' and 'optim_args'; leave it out to set them here")
        return TrainingArguments(**{**usual, **settings, **more})
    except (TypeError, ValueError, ImportError) as error:
        raise SwagError(
            f"--training takes further TrainingArguments as a JSON object, got {options.training!r}: {error}"
        ) from error


def _length(options: TrainOptions) -> dict[str, Any]:
    return {"max_steps": options.steps or DEFAULT_STEPS} if options.epochs is None else {"num_train_epochs": options.epochs}


def _checkpoints(options: TrainOptions) -> dict[str, Any]:
    """Return when to evaluate and to save. The best weights can be loaded at the end only where each evaluation may be followed by a save."""
    if options.eval is None:
        return {"save_strategy": "no" if options.save_steps is None else "steps", "save_steps": options.save_steps or 500}
    every: float = options.eval_steps or options.save_steps or 0.1  # below 1: a fraction of the run
    best = {
        "eval_strategy": "steps",
        "eval_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
    }
    if options.save_steps is not None:
        return best | {"save_strategy": "steps", "save_steps": options.save_steps}
    # The best checkpoint and the last, from which --resume goes on.
    return best | {"save_strategy": "steps", "save_steps": every, "save_total_limit": 1}
