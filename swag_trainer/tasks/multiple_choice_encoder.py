"""Multiple choice by an encoder with a head of its own: each choice is read with its question, and gets one logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModelForMultipleChoice

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.errors import SwagError
from swag_trainer.tasks.base import Link, Task
from swag_trainer.tasks.question_encoder import PRESENT
from swag_trainer.tasks.questions import LETTERS
from swag_trainer.tasks.right_choices import right_choices


class MultipleChoiceEncoder(Task):
    """Questions with one event each, whose classes are the choices.

    A batch has the shape (B, C, T), as transformers' models for multiple choice take it, C the number of choices. The model is given a
    row for each choice. Where questions differ in how many choices they have, `PRESENT` of shape (B, C) says which there are; a missing
    choice has the logit minus infinity.

    Args:
        max_choices: How many choices a question has at most; predictions are that wide.

    Raises:
        SwagError: It is out of range.
    """

    name: ClassVar[str] = "swag-multiple-choice-encoder"
    hub_tag: ClassVar[str] = "multiple-choice"
    auto_model: ClassVar[type] = AutoModelForMultipleChoice
    head: ClassVar[str | None] = "ForMultipleChoice"
    columns: ClassVar[frozenset[str]] = frozenset({PRESENT})
    row_columns: ClassVar[frozenset[str]] = frozenset({PRESENT})

    def __init__(self, max_choices: int = 5) -> None:
        if type(max_choices) is not int or not 2 <= max_choices <= len(LETTERS):
            raise SwagError(f"max_choices must be from 2 to {len(LETTERS)}, got {str(max_choices)[:50]}.")
        self.max_choices = max_choices

    def configured(self, settings: Mapping[str, Any]) -> Task:
        """Return the task with the settings in a posterior's record: ``max_choices``."""
        if set(settings) - {"max_choices"}:
            raise SwagError(f"The task {self.name!r} has the setting 'max_choices', got {sorted(settings)[:5]}.")
        return MultipleChoiceEncoder(**settings)

    def for_model(self, model: nn.Module) -> Task:
        """Return the task itself for a PEFT model with a head for multiple choice.

        Raises:
            SwagError: The model is another one.
        """
        base = base_model(adapted_model(model))
        if not type(base).__name__.endswith(str(self.head)):
            raise SwagError(
                f"The task {self.name!r} needs a model such as AutoModelForMultipleChoice loads, got {type(base).__name__}."
            )
        return self

    def inputs(self, batch: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Return a row for each choice: every tensor in the shape (B * C, 1, T)."""
        self._shape(batch)
        return {name: value.flatten(0, 1)[:, None] for name, value in batch.items() if value.ndim > 2}

    def read(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the choices. Shape (B, max_choices); of a choice that a question does not have, any."""
        rows, num_choices = self._shape(batch)
        return pad(outputs["logits"].reshape(rows, num_choices), (0, self.max_choices - num_choices))

    def missing(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which choices a question does not have. Shape (B, max_choices), bool."""
        rows, num_choices = self._shape(batch)
        there = batch[PRESENT] if PRESENT in batch else batch["input_ids"].new_ones(rows, num_choices)
        return pad(there, (0, self.max_choices - num_choices)) == 0

    def num_classes(self, config: Any) -> int:
        """Return how many choices a question has at most."""
        return self.max_choices

    def tokens(self, batch: Mapping[str, Tensor], model: nn.Module) -> int:
        """Return the positions of all choices."""
        return max(value.numel() for value in batch.values())

    def link(self, config: Any) -> Link:
        """Return "softmax": one choice is right."""
        return "softmax"

    def labels(self, rows: Sequence[Mapping[str, Any]], num_labels: int) -> np.ndarray:
        """Return the places of the right choices, from 0, in the column "labels" or "label". Shape (N,), int64.

        Raises:
            SwagError: A row has none, or one that is no choice of its question.
        """

        def count(row: Mapping[str, Any]) -> int:
            return sum(map(int, row[PRESENT])) if PRESENT in row else len(row["input_ids"])

        return right_choices(rows, num_labels, count)

    def _shape(self, batch: Mapping[str, Tensor]) -> tuple[int, int]:
        """B and C."""
        shape = tuple(batch["input_ids"].shape) if "input_ids" in batch else ()
        if len(shape) != 3 or shape[1] > self.max_choices:
            raise SwagError(
                f"A batch of multiple choice has input_ids of the shape (questions, choices, tokens) with at most max_choices="
                f"{self.max_choices} choices, got {shape}. ChoicePairCollator makes one."
            )
        return shape[0], shape[1]
