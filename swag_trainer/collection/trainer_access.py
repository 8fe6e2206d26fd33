"""Access to the Trainer from a callback: which Trainer calls, where it saves, its evaluation sets and its logs.

Everything of transformers that is private or not documented and that the collection depends on stands in this module:
``Trainer._get_output_dir``, ``Trainer._trial``, the order of ``Trainer.callback_handler.callbacks``, the frames between an event and
the Trainer, the fact that a new `TrainerState` asks every callback for its state, and which adapters the Trainer restores. tests/collection/test_trainer_access.py fails
where one of them changes. A Trainer that inherits from `SwagTrainerMixin` hands itself over, without frames and without a changed
order of callbacks.
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
import transformers
from peft import PeftModel
from transformers import TrainerCallback, TrainerState

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import SwagError
from swag_trainer.hub import delete_if_present

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.getLogger(__name__)

_FRAMES = 12  # between an event and the Trainer that caused it lie two or three


class TrainerAware:
    """Base class of callbacks that need their Trainer, which the Trainer's events do not pass (transformers 5.23)."""

    _attached: Trainer | None = None

    def attach(self, trainer: Trainer) -> None:
        """Hand the Trainer over. `SwagTrainerMixin` does so; call it after making any other Trainer that cannot be found."""
        self._attached = trainer

    def find_trainer(self, state: TrainerState) -> Trainer | None:
        """Return the Trainer whose event is being handled: the attached one, else the one that frame inspection finds.

        Args:
            state: The state that came with the event, which tells whether the attached Trainer is the one that called.
        """
        if self._attached is not None and self._attached.state is state:
            return self._attached
        return calling_trainer()

    def log_metrics(self) -> Mapping[str, float]:
        """Return what belongs into the Trainer's next training log."""
        return {}


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


def warn_without_trainer() -> None:
    """Log which features are missing where `TrainerAware.find_trainer` found no Trainer."""
    logger.warning(
        "SwagCallback was called by something else than a Trainer, or by one that it cannot find. The posterior is collected all the same, but "
        "the logs get no metrics of the collection, the checkpoints of a hyperparameter search's trials are not found, running pushes are "
        "not waited for, and a posterior of an earlier run is not deleted from the Hub. Let your Trainer inherit from "
        "swag_trainer.SwagTrainerMixin, or call swag.attach(trainer) before trainer.train()."
    )


def asked_by_a_new_state() -> bool:
    """Is the caller's ``state()`` called by a `TrainerState` that is being made, and not by a save? The last run is over then."""
    return isinstance(sys._getframe(2).f_locals.get("self"), TrainerState)


def output_folder(trainer: Trainer | None, args: TrainingArguments) -> Path:
    """Return where the checkpoints of the current run are saved: ``output_dir``, or in a hyperparameter search the trial's own."""
    if trainer is None:
        return Path(args.output_dir)
    return Path(trainer._get_output_dir(trainer._trial))


def leaves_out_adapter(weights: AdapterWeights) -> bool:
    """Does a Trainer that resumes leave this adapter as it was initialised?

    Until transformers 5.23 it does so with "default" beside other adapters: it loads those in sub-folders of the checkpoint alone.
    """
    old = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)
    several = isinstance(weights.model, PeftModel) and len(weights.model.peft_config) > 1
    return old and several and weights.adapter_name == "default" and not weights.is_sharded


def wait_for_uploads(trainer: Trainer | None) -> None:
    """Wait until the running pushes are done: they read ``output_dir`` in the background, adapter and posterior one after the other."""
    push = getattr(trainer, "push_in_progress", None)
    if push is not None:
        push.wait_until_done()


def delete_from_hub(trainer: Trainer | None, path: str) -> None:
    """Delete a file from the repository that the Trainer pushes to, if it is there: a push replaces files and deletes none.

    A Hub that cannot be reached is only worth a warning, as for the Trainer's own pushes.
    """
    if trainer is None or trainer.hub_model_id is None:
        return
    try:
        delete_if_present(
            trainer.hub_model_id,
            path,
            commit_message=f"Delete {path} of an earlier run",
            revision=trainer.args.hub_revision,
            token=trainer.args.hub_token,
        )
    except SwagError as error:
        logger.warning("%s It is of an earlier run and does not load beside the adapter that is pushed now.", error)


class TrainerLogMetrics(TrainerCallback):
    """Adds metrics to the logs of a Trainer without `SwagTrainerMixin`, before any reporter reads them.

    Reporters, TensorBoard and the like, stand before the user's callbacks, so this one takes the first place.

    Args:
        metrics: Called at every log of the training, not at those of an evaluation.
    """

    def __init__(self, metrics: Callable[[], Mapping[str, float]]) -> None:
        self.metrics = metrics

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **kwargs: Any) -> None:
        """Add them to the logs of this step and to the history, which was written just before."""
        if is_evaluation_log(logs):
            return
        metrics = self.metrics()
        logs.update(metrics)
        if state.log_history:
            state.log_history[-1].update(metrics)

    def insert_first(self, trainer: Trainer) -> None:
        """Take the first place among the Trainer's callbacks."""
        # A new list: the Trainer is walking over the old one.
        trainer.callback_handler.callbacks = [self, *trainer.callback_handler.callbacks]

    def remove(self, trainer: Trainer) -> None:
        """Undo `insert_first`."""
        trainer.callback_handler.callbacks = [other for other in trainer.callback_handler.callbacks if other is not self]


def is_evaluation_log(logs: Mapping[str, Any]) -> bool:
    """Are these the logs of an evaluation, and not of the training?"""
    return any(name.startswith("eval") for name in logs)


def evaluate_without_logging(trainer: Trainer, data_set: str | None) -> dict[str, float]:
    """Return the metrics of the model as it is on an evaluation set: no logs, no events, no random number used up.

    Args:
        trainer: The Trainer.
        data_set: Name of the evaluation set where the Trainer has a dictionary of them, else None.
    """
    with preserved_random_states():
        output = trainer.evaluation_loop(
            trainer.get_eval_dataloader(data_set),
            description="Evaluation of the average",
            prediction_loss_only=True if trainer.compute_metrics is None else None,
            metric_key_prefix="eval" if data_set is None else f"eval_{data_set}",
        )
    return output.metrics


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch at the end of a ``with`` block."""
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
