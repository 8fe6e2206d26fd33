"""What a fitting method is given: a trained adapter in its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from swag_trainer.adapters.keys import active_adapter, adapted_model, parameter_names
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.model_metadata import base_metadata, check_saved_modules, library_versions, task_metadata
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.tasks import task_named
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

    @classmethod
    def of(cls, model: nn.Module, adapter_name: str | None = None) -> Self:
        """Return the adapter in a model.

        Args:
            model: The PEFT model. It stays as it is.
            adapter_name: Which adapter; default: the active one.

        Raises:
            SwagError: PEFT would not save all that was trained.
        """
        inner = adapted_model(model)
        weights = AdapterWeights(model, adapter_name, keys=parameter_names(inner, adapter_name or active_adapter(inner)))
        check_saved_modules(weights)
        metadata = base_metadata(weights) | task_metadata(weights, problem_type=None)
        saved = weights.saved()
        record = PosteriorRecord(base_model=saved.base_model, versions=library_versions(), **metadata)
        return cls(model, weights, saved, record, task_named(metadata["task"]).configured(metadata["task_settings"]))

    def values(self) -> dict[str, Tensor]:
        """Return the weights by key, float32 copies on the CPU."""
        return {key: weight.detach().float().cpu().clone() for key, weight in self.weights.read().items()}
