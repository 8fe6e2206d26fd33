"""Sequential sampling: one forward for each weight draw. Right for every adapter that PEFT has."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.dropout import DropoutMasks, masked
from swag_trainer.tasks import task_named
from swag_trainer.tasks.base import Task


class SequentialSampler:
    """Logits of S draws for a batch, one draw after the other.

    Args:
        weights: The weights in a private copy of the model, which is written to.
        draws: Shape (S, P).
        task: What of the model's outputs is predicted; default: sequence classification.
        masks: Those of the draws; None without dropout.
    """

    def __init__(
        self, weights: AdapterWeights, draws: Tensor, *, task: Task | None = None, masks: DropoutMasks | None = None
    ) -> None:
        self._weights = weights
        self._draws = draws
        self._task = task_named(None) if task is None else task
        self._masks = masks

    def __call__(self, batch: Mapping[str, Tensor], draws: Tensor | None = None) -> Tensor:
        """Return the logits of every draw. Shape (S, E, C), on the model's device.

        Args:
            batch: What the model takes.
            draws: Other draws than those this was made with. Shape (S', P).
        """
        logits = []
        with torch.inference_mode():
            for place, draw in enumerate(self._draws if draws is None else draws):
                self._weights.write(self._weights.layout.unflatten(draw))
                with masked(self._masks, range(place, place + 1), batch):
                    logits.append(event_logits(self._task, self._weights.model, batch))
        return torch.stack(logits)


def event_logits(task: Task, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return a model's logits for the events of a batch. Shape (E, C).

    Raises:
        SwagError: The model is for another task.
    """
    logits = task.read(model(**task.inputs(batch), **task.constants(model)), batch)
    task.check_logits(logits, batch, model)
    return logits
