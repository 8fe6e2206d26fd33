"""The interface of a task: what of a model's inputs costs time, what of its outputs is predicted, and how logits become predictions.

A new task is one file: a class that inherits from `Task`. Predictor, samplers and tuning know nothing else of it.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from swag_trainer.errors import SwagError

Link = Literal["softmax", "sigmoid", "identity"]

TASKS: dict[str, Task] = {}

LABEL_COLUMNS = ("labels", "label", "label_ids")

# Parameters of vision models that are positions besides those of the image.
_EXTRA_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")


class Task(ABC):
    """What a model is used for.

    One row of a batch may have several events, each with logits of its own: the tokens of a text, the choices of a question.

    Attributes:
        name: Name of the pipeline's task, such as "swag-text-classification". It stands in a posterior's record.
        hub_tag: The Hub's own name of the task, such as "text-classification".
        auto_model: The class of transformers that loads a base model for it.
        head: What the class names of its models end in, such as "ForSequenceClassification", or several such endings; None where they do
            not tell the task.
        peft_task_type: PEFT's "task_type" of its adapters; None where there is none.
        columns: Columns of a batch that the task reads and the model does not take.
        row_columns: Those of them, of shape (B, ...), whose second dimension does not count positions.
        pads_anywhere: Whether padding on the left may be taken off a batch as padding on the right is: the task gives the model the
            positions of a text without its padding.
    """

    name: ClassVar[str]
    hub_tag: ClassVar[str]
    auto_model: ClassVar[type]
    head: ClassVar[str | tuple[str, ...] | None] = None
    peft_task_type: ClassVar[str | None] = None
    columns: ClassVar[frozenset[str]] = frozenset()
    row_columns: ClassVar[frozenset[str]] = frozenset()
    pads_anywhere: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        TASKS[cls.name] = cls()

    def configured(self, settings: Mapping[str, Any]) -> Task:
        """Return the task with the settings in a posterior's record; default: the task itself, which has none.

        Raises:
            SwagError: A setting is unknown or out of range.
        """
        if settings:
            raise SwagError(f"The task {self.name!r} has no settings, got {sorted(settings)}.")
        return self

    def for_model(self, model: nn.Module) -> Task:
        """Return the task for one PEFT model, which may be asked what it can do; default: the task itself.

        Raises:
            SwagError: The model is for another task.
        """
        return self

    def constants(self, model: nn.Module) -> Mapping[str, Any]:
        """Return what every forward of the model is given besides the inputs."""
        return {}

    def inputs(self, batch: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Return what one forward of the model is given of a batch: tensors with the rows in front, and plain values; default: the batch."""
        return batch

    def missing(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Return which classes an event does not have. Shape (E, C), bool; default: None, as every event has all classes.

        What `read` returns for them is any finite number; their logits are then set to minus infinity.
        """
        return None

    def num_classes(self, config: Any) -> int:
        """Return C, how many classes an event has at most; default: as many as the model's labels."""
        return config.num_labels

    def tokens(self, batch: Mapping[str, Tensor], model: nn.Module) -> int:
        """Return what one draw costs, in positions: rows times positions of the longest sequence; an image has its patches."""
        images = batch.get("pixel_values")
        if images is not None:
            return len(images) * positions_of_images(model, images)
        return max((value.shape[0] * value.shape[1] if value.ndim > 1 else value.shape[0]) for value in batch.values())

    def events(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which row of the batch each event belongs to, in ascending order. Shape (E,), on the CPU; default: one event per row."""
        return torch.arange(len(next(iter(batch.values()))))

    @abstractmethod
    def read(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the events. Shape (E, C); of packed outputs, S * B rows draw by draw, (S * E, C)."""

    def num_events(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return how many events with a label each row of a data set has. Shape (rows,), int64; default: one."""
        return np.ones(len(rows), dtype=np.int64)

    def restored(self, values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return values of the events, shape (E, C), in the shape of the model's logits; default: as they are, one event per row."""
        return values

    def features(self, given: Tensor, made: Tensor, logits: Tensor) -> Tensor | None:
        """Return the features of the events: what the model's last linear layer, the one with C outputs, was given for them.

        Args:
            given, made: Input and output of that layer in a plain forward. Shapes (..., h) and (..., C).
            logits: What `read` returned of the same forward. Shape (E, C).

        Returns:
            Shape (E, h); None where the task has no features, and then no OOD score. Default: None.
        """
        return None

    def check_logits(self, logits: Tensor, batch: Mapping[str, Tensor], model: nn.Module) -> None:
        """Check what `read` returned for a plain forward.

        Raises:
            SwagError: It is not C logits for each event: the model is for another task.
        """
        num_events = len(self.events(batch))
        if logits.ndim != 2 or len(logits) != num_events:
            raise SwagError(
                f"The task {self.name!r} needs C logits for each of the {num_events} events of a batch, but {type(model).__name__} gives "
                f"a tensor of shape {tuple(logits.shape)}: it is for another task. Supported tasks: {', '.join(sorted(TASKS))}. For another "
                "one write a class that inherits from swag_trainer.tasks.base.Task and pass MonteCarloPredictor(task=...), or draw weights "
                "with posterior.sample(...), and average the model's predictions under each of them."
            )

    @abstractmethod
    def link(self, config: Any) -> Link:
        """Return how logits become predictions: "softmax", "sigmoid" (labels that do not exclude each other) or "identity" (regression)."""

    @abstractmethod
    def labels(self, rows: Sequence[Mapping[str, Any]], num_labels: int) -> np.ndarray:
        """Return the true classes of the events of a data set. Shape (N,), int64.

        Raises:
            SwagError: A row has no label, or an impossible one.
        """


def class_numbers(rows: Sequence[Mapping[str, Any]], num_labels: int) -> np.ndarray:
    """Return the class numbers in the column "labels", "label" or "label_ids". Shape (N,), int64.

    Raises:
        SwagError: No rows, no such column, or a value that is not a class number of the model.
    """
    column = _label_column(rows)
    labels = np.empty(len(rows), dtype=np.int64)
    for index, row in enumerate(rows):
        try:
            labels[index] = operator.index(row[column])
        except (TypeError, KeyError) as error:
            raise SwagError(
                f"Row {index} has {column}={str(row.get(column))[:50]}; a class number is needed: tuning is for classes that exclude "
                "each other."
            ) from error
        if not 0 <= labels[index] < num_labels:
            raise SwagError(f"Row {index} has {column}={labels[index]}; the model has the classes 0 to {num_labels - 1}.")
    return labels


def label_flags(rows: Sequence[Mapping[str, Any]], num_labels: int) -> np.ndarray:
    """Return which labels each row has, from a 0 or 1 for each label in the column "labels", "label" or "label_ids". Shape (N, C), int64.

    Raises:
        SwagError: No rows, no such column, or a value that is not a 0 or 1 for each label of the model.
    """
    column = _label_column(rows)
    flags = np.empty((len(rows), num_labels), dtype=np.int64)
    for index, row in enumerate(rows):
        try:
            values = np.asarray(row[column], dtype=np.float64).reshape(-1)
        except (TypeError, ValueError, KeyError):
            values = np.empty(0)
        if len(values) != num_labels or not np.isin(values, (0, 1)).all():
            raise SwagError(
                f"Row {index} has {column}={str(row.get(column))[:50]}; a 0 or 1 is needed for each of the model's {num_labels} labels, "
                "which do not exclude each other."
            )
        flags[index] = values
    return flags


def _label_column(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        raise SwagError("A data set without rows cannot be measured on.")
    column = next((column for column in LABEL_COLUMNS if column in rows[0]), None)
    if column is None:
        raise SwagError(f"The rows have no column {' or '.join(map(repr, LABEL_COLUMNS))}; they have {sorted(rows[0])}.")
    return column


def positions_of_images(model: nn.Module, images: Tensor) -> int:
    """Return the most positions that a vision model computes for one image of shape (B, channels, height, width).

    They are those of its first convolution over the image, which cuts it into patches or is the stem, and its extra tokens (the class,
    DeiT's distillation, registers). Later stages of Swin, ConvNeXt or a ResNet have fewer. Without a convolution, every pixel is one.
    """
    size = images.shape[-2:]
    channels = images.shape[1]
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels == channels), None)
    if first is not None:
        padding = (0, 0) if isinstance(first.padding, str) else first.padding
        taken = zip(size, padding, first.dilation, first.kernel_size, first.stride, strict=True)
        size = [(length + 2 * pad - spread * (kernel - 1) - 1) // step + 1 for length, pad, spread, kernel, step in taken]
    extra = {
        name: parameter.numel() // parameter.shape[-1]
        for path, parameter in model.named_parameters()
        if (name := path.rpartition(".")[2]) in _EXTRA_TOKENS
    }
    return size[0] * size[1] + sum(extra.values())
