"""Right choices of encoded multiple-choice questions: whether a batch has them, and which they are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from swag_trainer.errors import SwagError
from swag_trainer.tasks.base import class_numbers


def are_answered(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the encoded questions of a batch have an answer.

    Raises:
        SwagError: Some have one, and others none.
    """
    answered = sum("labels" in row for row in rows)
    if 0 < answered < len(rows):
        raise SwagError(
            f"{answered} of {len(rows)} questions of a batch have an answer. A loss needs one for each, and a prediction none: leave "
            "out the questions without, or the answers."
        )
    return answered > 0


def right_choices(
    rows: Sequence[Mapping[str, Any]], num_labels: int, count_choices: Callable[[Mapping[str, Any]], int]
) -> np.ndarray:
    """Return the places of the right choices, from 0, in the column "labels" or "label". Shape (N,), int64.

    Args:
        rows: Encoded questions.
        num_labels: How many choices a question has at most.
        count_choices: Returns how many a question has.

    Raises:
        SwagError: A row has none, or one that is no choice of its question.
    """
    labels = class_numbers(rows, num_labels)
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        if operator.index(label) >= (count := count_choices(row)):
            raise SwagError(f"Row {index} has the right choice {label}, and {count} choices, counted from 0.")
    return labels
