"""Names of the splits of a data set, which many data sets spell in their own way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swag_trainer.errors import SwagError, shortened

_USUAL = {
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "oos_test": "test",
    "oos_val": "validation",
    "oos_train": "train",
}


def usual_split(name: str) -> str:
    """Return the usual name of a split, such as "validation" for "dev"; a name of its own stays what it is."""
    return _USUAL.get(name, name)


def is_usual_split(name: str) -> bool:
    """Return whether a name means "train", "validation" or "test"."""
    return usual_split(name) in {"train", "validation", "test"}


def split_named(source: str, split: str, splits: Mapping[str, Any]) -> str:
    """Return the name of a split of the data; the only file is also found by its own name.

    Raises:
        SwagError: There is no such split.
    """
    wanted = usual_split(split)
    if wanted not in splits and list(splits) == ["train"] and Path(source).stem == split:
        return "train"
    if wanted not in splits:
        hint = " All of the only file is --split train." if list(splits) == ["train"] else ""
        raise SwagError(f"{source!r} has no split {wanted!r}; it has {shortened(', '.join(map(repr, sorted(splits))))}.{hint}")
    return wanted


def check_apart(split: str, others: Mapping[str, str | None]) -> None:
    """Check that no other split shares examples with one: as it is named in the command, or as it was read.

    Args:
        split: The one that is measured or tuned on.
        others: The splits of other options, None where one names none.

    Raises:
        SwagError: One is the same, or a part of it, or the whole that it is a part of.
    """
    for option, other in others.items():
        names = sorted(usual_split(name) for name in (split, other) if name is not None)
        if len(names) == 2 and (names[0] == names[1] or names[1].startswith(f"{names[0]}, ")):
            raise SwagError(
                f"{option} and --split are both {split!r}: nothing may be fitted on what is measured."
                if names[0] == names[1]
                else f"{option} is {other!r} and --split is {split!r}, which share examples: nothing may be fitted on what is measured."
            )
