"""Held-out rows with their labels, and what data set they are."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swag_trainer.errors import SwagError

_LABEL_COLUMNS = ("labels", "label", "label_ids")
# Builders of the datasets library that read any file: their names say nothing about the data.
_NO_NAMES = {"arrow", "csv", "generator", "json", "pandas", "parquet", "sql", "text", "xml"}
_HUB_FILE = re.compile(r"hf://datasets/((?:[^/@]+/)?[^/@]+)@([0-9a-f]{40})/")


@dataclass(frozen=True)
class HeldOut:
    """Rows that nothing was trained on.

    Attributes:
        rows: As the Trainer takes them.
        labels: True classes. Shape (N,), int64.
        name: The data set's name on the Hub, or one that was given.
        split, revision: Where known.
    """

    rows: Sequence[Any]
    labels: np.ndarray
    name: str
    split: str | None
    revision: str | None

    @classmethod
    def of(
        cls, dataset: Iterable[Any], *, name: str | None, split: str | None, revision: str | None, num_labels: int
    ) -> HeldOut:
        """Read a data set; what is not given is taken from a ``datasets.Dataset`` where it says it.

        Raises:
            SwagError: No rows, a row without a class number, or no name to be found.
        """
        rows = [dataset[index] for index in range(len(dataset))] if hasattr(dataset, "__len__") else list(dataset)
        known_name, known_revision = _origin(getattr(dataset, "info", None))
        if name is None and known_name is not None:
            name, revision = known_name, revision or known_revision
        if split is None and getattr(dataset, "split", None) is not None:
            split = str(dataset.split)
        return cls(rows, _labels(rows, num_labels), _checked_name(name), split, revision)


def _origin(info: Any) -> tuple[str | None, str | None]:
    """Name and commit from the files that the datasets library loaded from the Hub, or the name of its builder."""
    for source in getattr(info, "download_checksums", None) or {}:
        if found := _HUB_FILE.match(source):
            return found[1], found[2]
    name = getattr(info, "dataset_name", None)
    return (None if name in _NO_NAMES else name), None


def _checked_name(name: str | None) -> str:
    if not name:
        raise SwagError(
            "The data set does not say what it is called; pass name=..., which is written beside what is measured on it."
        )
    # "user/name", "name" and "name:config" are names; a path of this machine says nothing elsewhere and may say too much.
    if name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1 or re.match(r"[A-Za-z]:", name[:2]):
        raise SwagError(f"name is the name of a data set, which is published with the posterior, not a path: got {name!r}.")
    return name


def _labels(rows: Sequence[Any], num_labels: int) -> np.ndarray:
    if not rows:
        raise SwagError("A data set without rows cannot be measured on.")
    column = next((column for column in _LABEL_COLUMNS if column in rows[0]), None)
    if column is None:
        raise SwagError(f"The rows have no column {' or '.join(map(repr, _LABEL_COLUMNS))}; they have {sorted(rows[0])}.")
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
