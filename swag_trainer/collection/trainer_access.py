"""What a callback needs of the Trainer and is not given: to stand before the reporters, and to evaluate other weights.

The Trainer passes its model, optimizer and state to every event, itself to none (transformers 5.23, trainer_callback.py,
CallbackHandler.call_event). Its reporters, TensorBoard and the like, stand before the user's callbacks, so a figure that a callback
adds to the logs comes too late for them. Both are reached through the event's caller.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy
import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer

_FRAMES = 12  # between an event and the Trainer that caused it lie two or three


def calling_trainer() -> Trainer | None:
    """Return the Trainer whose event is being handled, or None outside of one."""
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame is None:
            return None
        caller = frame.f_locals.get("self")
        if hasattr(caller, "callback_handler") and hasattr(caller, "evaluation_loop"):
            return caller
        frame = frame.f_back
    return None


class FiguresForTheLogs(TrainerCallback):
    """Adds figures to the Trainer's logs before any reporter reads them.

    Args:
        figures: Asked at every log of the training, not at those of an evaluation.
    """

    def __init__(self, figures: Callable[[], Mapping[str, float]]) -> None:
        self.figures = figures

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **kwargs: Any) -> None:
        """Add them to the logs of this step and to the history, which was written just before."""
        if any(name.startswith("eval") for name in logs):
            return
        figures = self.figures()
        logs.update(figures)
        if state.log_history:
            state.log_history[-1].update(figures)

    def stand_first_in(self, trainer: Trainer) -> None:
        """Take the first place among the Trainer's callbacks."""
        # A new list: the Trainer is walking over the old one.
        trainer.callback_handler.callbacks = [self, *trainer.callback_handler.callbacks]

    def leave(self, trainer: Trainer) -> None:
        """Undo `stand_first_in`."""
        trainer.callback_handler.callbacks = [other for other in trainer.callback_handler.callbacks if other is not self]


def evaluate_quietly(trainer: Trainer) -> dict[str, float]:
    """Return the metrics of the model as it is on the Trainer's evaluation set: no logs, no events, no random number used up."""
    with _random_states_kept():
        output = trainer.evaluation_loop(
            trainer.get_eval_dataloader(),
            description="Evaluation of the average",
            prediction_loss_only=True if trainer.compute_metrics is None else None,
            metric_key_prefix="eval",
        )
    return output.metrics


@contextmanager
def _random_states_kept() -> Iterator[None]:
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
