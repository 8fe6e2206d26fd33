"""Features of a classifier: the input of the last layer of its head at a posterior's mean weights, for the OOD score."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.adapters.weights import private_copy
from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.features import FeatureDistribution, fit
from swag_trainer.tasks.base import Task

MAX_EXAMPLES = 10_000
_LABELS = {"label", "labels", "label_ids"}


class MeanFeatures:
    """Features of the events of a batch: one plain forward at the mean weights. Calls from several threads wait for each other.

    The last layer of the head is found by running the model: of the layers with as many outputs as there are classes it is the one that
    finishes last. It may be wrapped by PEFT, as a trained copy or with LoRA.

    Args:
        model: The PEFT model. It gets a private copy, which shares the base model's tensors, and is not written to.
        posterior: A posterior of its active adapter.
        task: Which features.
        adapter_name: The adapter's name, if another than the active one is a mistake.

    Raises:
        AdapterMismatchError: The posterior has other weights than the adapter.
        SwagError: The model is a regression, or one for labels that do not exclude each other, or has no layer with an output per class.
    """

    def __init__(self, model: nn.Module, posterior: WeightPosterior, *, task: Task, adapter_name: str | None = None) -> None:
        check_link(model, task)
        with torch.inference_mode(False):
            weights = private_copy(model, adapter_name, posterior.layout.keys)
        weights.write(posterior.mean)
        self._model, self._task = weights.model, task
        self._device = weights.parameters()[0].device
        self._base: Any = base_model(weights.model)
        self._lock = threading.Lock()
        self._last: tuple[Tensor, Tensor] | None = None
        num_labels = self._base.config.num_labels
        heads = [module for module in self._base.modules() if getattr(module, "out_features", None) == num_labels]
        if not heads:
            raise SwagError(
                f"{type(self._base).__name__} has no linear layer with {num_labels} outputs, one for each class, whose input could be "
                "the features of an OOD score."
            )
        for module in heads:
            module.register_forward_hook(self._keep)

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the features of the events. Shape (E, h), float32, on the CPU.

        Args:
            batch: What the model takes, without labels.

        Raises:
            SwagError: The task has no features of this model, or they are not finite.
        """
        batch = {name: value.to(self._device) for name, value in batch.items()}
        with self._lock, torch.inference_mode():
            self._last = None
            logits = self._task.read(self._model(**self._task.inputs(batch), **self._task.constants(self._model)), batch)
            given, made = self._last or (logits, logits)
            features = self._task.features(given, made, logits)
            self._last = None
        if features is None:
            raise SwagError(
                f"The task {self._task.name!r} finds no features in {type(self._base).__name__} whose last layer gives a tensor of shape "
                f"{tuple(made.shape)}: there is no OOD score for it."
            )
        features = features.float().cpu()
        if not torch.isfinite(features).all():
            raise SwagError("The features at the mean weights are not finite. Is the base model's precision too low?")
        return features

    def of_rows(
        self, rows: Sequence[Mapping[str, Any]], *, data_collator: Callable[[list[Any]], Mapping[str, Any]], batch_size: int
    ) -> np.ndarray:
        """Return the features of a data set's events, in its order. Shape (N, h), float32.

        Args:
            rows: Examples as the Trainer takes them; columns that the model does not know are left out.
            data_collator: Makes a batch of rows.
            batch_size: Rows per forward.
        """
        known = set(inspect.signature(self._base.forward).parameters)
        kept = known | _LABELS  # which a collator may ask for
        lengths = [len(row.get("input_ids", ())) for row in rows]
        parts, places = [], []
        # Rows of one length share a batch: the default collator does not pad, and padding would change the features a little.
        for length in sorted(set(lengths)):
            alike = [index for index, own in enumerate(lengths) if own == length]
            for chosen in (alike[start : start + batch_size] for start in range(0, len(alike), batch_size)):
                batch = data_collator(
                    [{name: value for name, value in rows[index].items() if name in kept} for index in chosen]
                )
                inputs = {name: batch[name] for name in known - _LABELS if isinstance(batch.get(name), Tensor)}
                parts.append(self(inputs))
                places.append(np.asarray(chosen)[self._task.events(inputs).numpy()])
        return torch.cat(parts).numpy()[np.concatenate(places).argsort(kind="stable")]

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            self._last = (args[0], output)


def check_link(model: nn.Module, task: Task) -> None:
    """Do nothing if a task has features and a model is for classes that exclude each other, which an OOD score needs.

    Raises:
        SwagError: It has none, or it is not.
    """
    if type(task).features is Task.features:
        raise SwagError(f"The task {task.name!r} has no features, so there is no OOD score for it.")
    link = task.link(base_model(adapted_model(model)).config)
    if link != "softmax":
        kind = "a regression" if link == "identity" else "labels that do not exclude each other"
        raise SwagError(
            f"The OOD score is a distance to the nearest class, for classes that exclude each other; this model is for {kind}."
        )


def fit_features(
    features: MeanFeatures,
    rows: Any,
    *,
    task: Task,
    num_labels: int,
    data_collator: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int,
) -> FeatureDistribution:
    """Fit class means and covariance to training examples: at most 10,000 of them, evenly spaced over the data set.

    Args:
        features: Of the model.
        rows: The examples, with a length and by index, as the Trainer takes them.
        task: Which reads their labels.
        num_labels: C, how many classes the model has.
        data_collator, batch_size: As in `MeanFeatures.of_rows`.

    Raises:
        SwagError: A label is missing or no class number, or no class has two different examples.
    """
    places = np.linspace(0, len(rows) - 1, min(len(rows), MAX_EXAMPLES)).round().astype(int).tolist()
    chosen = [rows[index] for index in places]
    labels = task.labels(chosen, num_labels)
    return fit(features.of_rows(chosen, data_collator=data_collator, batch_size=batch_size), labels)
