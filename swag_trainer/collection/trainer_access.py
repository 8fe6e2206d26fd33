"""What a callback needs of the Trainer and is not given: to stand before the reporters, to evaluate other weights, where it saves.

The Trainer passes its model, optimizer and state to every event, itself to none (transformers 5.23, trainer_callback.py,
CallbackHandler.call_event). Its reporters, TensorBoard and the like, stand before the user's callbacks, so a figure that a callback
adds to the logs comes too late for them. All is reached through the event's caller.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from huggingface_hub import HfApi
from transformers import TrainerCallback, TrainerState

from swag_trainer.hub import FAILURES

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.getLogger(__name__)

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


def asked_by_a_new_state() -> bool:
    """Is the caller's ``state()`` asked for by a `TrainerState` that is being made, and not by a save? The run it knows is over then."""
    return isinstance(sys._getframe(2).f_locals.get("self"), TrainerState)


def output_folder(trainer: Trainer | None, args: TrainingArguments) -> Path:
    """Return where the checkpoints of the run under way are saved: ``output_dir``, or in a hyperparameter search the trial's own."""
    if trainer is None:
        return Path(args.output_dir)
    return Path(trainer._get_output_dir(trainer._trial))


def wait_for_uploads(trainer: Trainer | None) -> None:
    """Wait until the pushes under way are done: they read ``output_dir`` in the background, adapter and posterior one after the other."""
    if trainer is not None:
        trainer._finish_current_push()


def remove_from_hub(trainer: Trainer | None, path: str) -> None:
    """Delete a file from the repository that the Trainer pushes to, if it is there: a push replaces files and deletes none.

    A Hub that does not answer is only worth a warning, as for the Trainer's own pushes.
    """
    if trainer is None or trainer.hub_model_id is None:
        return
    api = HfApi(token=trainer.args.hub_token)
    where = {"repo_id": trainer.hub_model_id, "revision": trainer.args.hub_revision}
    try:
        if api.file_exists(filename=path, **where):
            api.delete_file(path, commit_message=f"Delete {path} of an earlier run", **where)
    except FAILURES as error:
        logger.warning(
            "%r of an earlier run could not be deleted from %r. Nobody can load it beside the adapter that comes now: %s",
            path,
            trainer.hub_model_id,
            f"{type(error).__name__}: {str(error)[:200]}",
        )


class TrainerLogMetrics(TrainerCallback):
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
