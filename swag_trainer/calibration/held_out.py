"""Held-out examples with their labels, and the name, split and revision of their data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swag_trainer.errors import SwagError
from swag_trainer.tasks.base import Task, label_flags

UNNAMED = "unnamed"
# Builders of the datasets library that read any file: their names do not identify the data.
_NO_NAMES = {"arrow", "csv", "generator", "json", "pandas", "parquet", "sql", "text", "xml"}
_HUB_FILE = re.compile(r"hf://datasets/((?:[^/@]+/)?[^/@]+)@([0-9a-f]{40})/")


@dataclass(frozen=True)
class HeldOut:
    """Examples that nothing was trained on.

    Attributes:
        rows: The examples as the Trainer takes them.
        labels: True classes, shape (N,); or which labels each example has, 0 or 1, shape (N, C). Int64.
        name: The data set's name on the Hub, or the one that was given, or "unnamed".
        split, revision: None where not known.
    """

    rows: Sequence[Any]
    labels: np.ndarray
    name: str
    split: str | None
    revision: str | None

    @classmethod
    def of(
        cls,
        dataset: Iterable[Any],
        *,
        task: Task,
        num_labels: int,
        exclusive: bool = True,
        name: str | None = None,
        split: str | None = None,
        revision: str | None = None,
    ) -> HeldOut:
        """Read a data set; what is not given is taken from a ``datasets.Dataset`` where it is recorded there.

        Args:
            dataset: Examples as the Trainer takes them.
            task: Which reads their labels.
            num_labels: C, how many classes the model has.
            exclusive: Whether every example has one label, and not any number of them.
            name, split, revision: Of the data set.

        Raises:
            SwagError: No examples, one without a class number, or a name that is a path.
        """
        rows = [dataset[index] for index in range(len(dataset))] if hasattr(dataset, "__len__") else list(dataset)
        own_name, own_revision = _origin(getattr(dataset, "info", None))
        if name is None and own_name is not None:
            name, revision = own_name, revision or own_revision
        if split is None and getattr(dataset, "split", None) is not None:
            split = str(dataset.split)
        labels = task.labels(rows, num_labels) if exclusive else label_flags(rows, num_labels)
        return cls(rows, labels, checked_name(name or UNNAMED), split, revision)


def _origin(info: Any) -> tuple[str | None, str | None]:
    """Name and commit from the files that the datasets library loaded from the Hub, or the name of its builder."""
    for source in getattr(info, "download_checksums", None) or {}:
        if found := _HUB_FILE.match(source):
            return found[1], found[2]
    name = getattr(info, "dataset_name", None)
    return (None if name in _NO_NAMES else name), None


def checked_name(name: str) -> str:
    """Return the name of a data set, which is published with what is measured on it.

    Raises:
        SwagError: It is a path, which means nothing on another machine and may reveal too much of this one.
    """
    # "user/name", "name" and "name:config" are names.
    if name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1 or re.match(r"[A-Za-z]:", name[:2]):
        raise SwagError(f"name is the name of a data set, which is published with the posterior, not a path: got {name!r}.")
    return name
