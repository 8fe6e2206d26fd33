"""What a fitting method is given: a trained adapter in its model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.tasks.base import Task


@dataclass(frozen=True, eq=False)
class TrainedAdapter:
    """A trained adapter.

    Attributes:
        model: The model that holds it.
        weights: All of its weights, in the model.
        saved: The adapter as PEFT saves it.
        record: For a posterior of it.
        task: What the model predicts.
    """

    model: nn.Module
    weights: AdapterWeights
    saved: SavedAdapter
    record: PosteriorRecord
    task: Task

    def values(self) -> dict[str, Tensor]:
        """Return the weights by key, float32 copies on the CPU."""
        return {key: weight.detach().float().cpu().clone() for key, weight in self.weights.read().items()}
