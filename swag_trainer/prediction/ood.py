"""OOD score of each prediction: how far its features at the mean weights lie from every class, against held-out examples."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.lengths import rows_of_one_length
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.features import MeanFeatures


class OodScorer:
    """OOD scores of the events of a batch: one forward at the mean weights, and no draws.

    Args:
        model: The PEFT model. It gets a private copy and is not written to.
        posterior: A posterior of its active adapter, whose features have held-out distances.
        task: What is predicted.
        adapter_name: The adapter's name, if another than the active one is a mistake.

    Raises:
        SwagError: The posterior has no OOD score, see `check_ood_score`, or the model has no features.
    """

    def __init__(self, model: nn.Module, posterior: WeightPosterior, *, task: Task, adapter_name: str | None = None) -> None:
        check_ood_score(posterior)
        self._made_from = functools.partial(OodScorer, model, posterior, task=task, adapter_name=adapter_name)
        self._distribution = posterior.features
        self._features = MeanFeatures(model, posterior, task=task, adapter_name=adapter_name)
        self._task = task

    def __reduce__(self) -> tuple[Any, ...]:
        """Be made anew where it is copied or sent to another process: hooks and locks cannot be."""
        return self._made_from, ()

    def __call__(self, inputs: Mapping[str, Tensor]) -> np.ndarray:
        """Return the score of each event, see `FeatureDistribution.score`. Shape (E,), float64, in [0, 1).

        Rows of one length go through the model together, so that no score depends on the padding of its batch.
        """
        assert self._distribution is not None
        parts, places = [], []
        padding: dict[str, Any] = {"on_the_left": self._task.pads_anywhere, "row_columns": self._task.row_columns}
        for rows, part in rows_of_one_length(inputs, **padding):
            parts.append(self._features(part))
            places.append(rows[self._task.events(part)])
        order = torch.cat(places).argsort(stable=True)
        return self._distribution.score(torch.cat(parts)[order])


def has_ood_score(posterior: WeightPosterior) -> bool:
    """Whether predictions with a posterior have an OOD score: it was fitted, and there are distances of held-out examples."""
    return posterior.features is not None and posterior.features.num_held_out > 0


def check_ood_score(posterior: WeightPosterior, level: float | None = None) -> None:
    """Do nothing if predictions with a posterior have an OOD score, and a threshold for it can be set at a level.

    Raises:
        SwagError: They have none, or there are too few held-out examples for the level.
    """
    features = posterior.features
    if features is None:
        raise SwagError(
            "The posterior has no OOD score: class means of the training examples' features are not in its file. Collect it with "
            "SwagCallback(ood_features=True), or pass the training examples to swag_trainer.tune(..., train_data=...)."
        )
    if not features.num_held_out:
        raise SwagError(
            "The posterior has class means but no distances of held-out examples, which an OOD score is a fraction of. "
            "swag_trainer.tune(posterior, model, data) measures them."
        )
    if level is not None and level > features.highest_level:
        raise SwagError(
            f"ood={level:g} needs a distance that at most {1 - level:.3g} of held-out examples are beyond, and {features.num_held_out} "
            f"examples tell up to {features.highest_level:.3f}. Ask for less, or tune with more examples."
        )
