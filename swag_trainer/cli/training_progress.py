"""Progress of a training run on standard error: steps, loss, snapshots collected so far, time left."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swag_trainer.collection.callback import SwagCallback
from swag_trainer.collection.resume import steps_per_epoch
from swag_trainer.collection.schedule import collection_steps

_SECONDS_BETWEEN_LINES = 20  # in a file, where a bar is a line each time


class TrainingProgress(TrainerCallback):
    """Shows a bar with the latest loss and the number of snapshots, and a line for each evaluation.

    It stands behind the SwagCallback among the Trainer's callbacks, so that a snapshot is counted at its step.

    Args:
        swag: The callback that collects.
        title: What the bar is about, such as a seed.
    """

    def __init__(self, swag: SwagCallback, title: str) -> None:
        self.swag = swag
        self.title = title
        self.num_planned = 0
        self._bar: tqdm | None = None
        self._loss: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar, at the step of the checkpoint that a run goes on from."""
        epoch = steps_per_epoch(kwargs.get("train_dataloader"), args)
        planned = collection_steps(self.swag.schedule, max_steps=state.max_steps, steps_per_epoch=epoch)
        self.num_planned = len(planned)
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.title,
            unit="step",
            disable=not state.is_world_process_zero,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES,
        )
        self._show()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance to the step that was made. What comes after the last one may take a while, so a line says what it is."""
        if self._bar is None:
            return
        self._show()
        self._bar.update(state.global_step - self._bar.n)
        if state.global_step >= state.max_steps:
            self.close()  # what is logged from here on stands on lines of its own
            if self.swag.ood_features and state.is_world_process_zero:
                sys.stderr.write("The training examples are read once more, for the OOD score.\n")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the loss, which is the mean since the log before."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: Mapping[str, float],
        **kwargs: Any,
    ) -> None:
        """Write a line with the loss and the accuracy of the evaluation examples."""
        if "eval_loss" not in metrics or not state.is_world_process_zero:
            return
        accuracy = f", accuracy {metrics['eval_accuracy']:.3f}" if "eval_accuracy" in metrics else ""
        tqdm.write(f"Step {state.global_step}: evaluation loss {metrics['eval_loss']:.4f}{accuracy}", file=sys.stderr)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, also where a run was interrupted."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self) -> None:
        if self._bar is not None:
            loss = "" if self._loss is None else f"loss {self._loss:.3f}, "
            self._bar.set_postfix_str(f"{loss}{self.swag.num_collected}/{self.num_planned} snapshots", refresh=False)
