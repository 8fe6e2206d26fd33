"""Class names from the labels of a data set: which values are one class, which are missing, and which are no classes at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from swag_trainer.errors import SwagError


def class_names_of(labels: Sequence[Any], where: str) -> list[str | None]:
    """Return the name of each label's class.

    Whole numbers are one class however they are written: 1, 1.0 and "1" are "1".

    Args:
        labels: As they stand in the data.
        where: What data, for errors.

    Returns:
        None for a label that is missing: None, an empty text, or NaN.

    Raises:
        SwagError: Lists mean several labels for one example, numbers that are not whole a regression.
    """
    for place, label in enumerate(labels, start=1):
        if isinstance(label, (list, tuple, dict, set)) or hasattr(label, "tolist") and getattr(label, "ndim", 0) > 0:
            raise SwagError(
                f"Label {place} in {where} is {str(label)[:80]!r}: lists mean that an example has several labels. The commands train "
                "classifiers with one label for each example; for several, train with transformers' Trainer and "
                'problem_type="multi_label_classification", with SwagCallback as it stands.'
            )
    numbers = [_number(label) for label in labels]
    present = [number for label, number in zip(labels, numbers, strict=True) if not _is_missing(label)]
    if not present or any(number is None for number in present):
        return [None if _is_missing(label) else str(label) for label in labels]
    values = [number for number in present if number is not None and not math.isnan(number)]
    fraction = next((number for number in values if not number.is_integer()), None)
    if fraction is not None:
        raise SwagError(
            f"The labels in {where} are numbers, and {fraction:g} is not whole: that is a regression. The commands train classifiers; for a "
            "regression, train with transformers' Trainer and num_labels=1, with SwagCallback as it stands. Numbers that are names of "
            "classes need a letter, such as 'v1.5'."
        )
    return [None if number is None or math.isnan(number) else str(int(number)) for number in numbers]


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, str) and not label.strip()) or (isinstance(label, float) and math.isnan(label))


def _number(label: Any) -> float | None:
    """Return the number that a label is or spells; None for a name and for an infinite number."""
    if isinstance(label, bool) or not isinstance(label, (str, int, float)):
        return None
    try:
        number = float(label)
    except (ValueError, OverflowError):
        return None
    return None if math.isinf(number) or (isinstance(label, str) and "_" in label) else number
