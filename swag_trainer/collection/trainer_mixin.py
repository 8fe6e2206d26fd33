"""SwagTrainerMixin: a Trainer that hands itself over to its SwagCallbacks and logs their metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swag_trainer.collection.trainer_access import TrainerAware, is_evaluation_log

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class SwagTrainerMixin(_Base):
    """Gives the SwagCallbacks of a Trainer access to it through methods that transformers documents for overriding.

    Put it in front of the Trainer's class::

        class SwagTrainer(SwagTrainerMixin, Trainer):
            pass

        trainer = SwagTrainer(model=model, args=args, ..., callbacks=[SwagCallback()])

    A plain Trainer works as well: the callback then finds it by inspecting the frames of the call, and says so at WARNING where that
    fails. The posterior is the same bit for bit.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as the Trainer's own method does, after handing the Trainer over to its callbacks."""
        self._attach_callbacks()
        return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, as the Trainer's own method does, after handing the Trainer over to its callbacks."""
        self._attach_callbacks()
        return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, as the Trainer's own method does; a training log also gets the metrics of the collections."""
        callbacks = [] if is_evaluation_log(logs) else self._attach_callbacks()
        for callback in callbacks:
            logs.update(callback.log_metrics())
        super().log(logs, *args, **kwargs)

    def _attach_callbacks(self) -> list[TrainerAware]:
        callbacks = [callback for callback in self.callback_handler.callbacks if isinstance(callback, TrainerAware)]
        for callback in callbacks:
            callback.attach(self)
        return callbacks
