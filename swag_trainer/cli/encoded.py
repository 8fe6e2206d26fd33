"""Examples of a task with more to them than a text and its label, encoded for the model of a posterior: what the commands share."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from swag_trainer.cli.class_numbers import ClassNumbers
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.split_names import split_named
from swag_trainer.cli.text_data import OUT_OF_SCOPE
from swag_trainer.cli.text_files import unicode_problem
from swag_trainer.cli.text_sources import LABEL_COLUMNS, Row, name_of_source, refuse, rows_by_split
from swag_trainer.errors import SwagError


@dataclass(frozen=True, eq=False)
class EncodedExamples:
    """The examples of one split.

    Attributes:
        name: What the data is called; no path.
        split: Which part of it.
        revision: Commit on the Hub, None for files.
        rows: Examples as the Trainer takes them.
        texts: The text of each prediction: of a question, or of each tagged word.
        clusters: The example of each prediction, where examples have several. Shape (predictions,).
        groups: The example of each row, where examples have several rows. Shape (rows,).
    """

    name: str
    split: str
    revision: str | None
    rows: list[dict[str, Any]]
    texts: list[str]
    clusters: np.ndarray | None = None
    groups: np.ndarray | None = None


class Encoded(NamedTuple):
    """Rows that were encoded; see the attributes of `EncodedExamples`."""

    rows: list[dict[str, Any]]
    texts: list[str]
    clusters: np.ndarray | None = None
    groups: np.ndarray | None = None


class EncodedTask(ABC):
    """Reads and encodes the examples of a task. A subclass does so for its rows, in `encode`.

    Args:
        options: With the data set, its name, and the names of its columns.
        classifier: The pipeline of the task, with its model and tokenizer.

    Attributes:
        data_collator: Makes a batch of examples.
        task: The task, with the settings in the posterior's record.
        num_classes: C.
        takes_ood: Whether examples of another kind can be told from these.
    """

    takes_ood: ClassVar[bool]
    has_features: ClassVar[bool] = False  # of an example, for the OOD score
    # Options of labelled text that have no meaning for the task.
    unused_options: ClassVar[tuple[str, ...]] = ()
    data_collator: Callable[[list[Any]], Any]

    def __init__(self, options: TextOptions, classifier: Any) -> None:
        self.options, self.classifier = options, classifier
        for name in self.unused_options:
            if getattr(options, name, None) is not None:
                task = classifier.predicted_task().name
                raise SwagError(f"--{name.replace('_', '-')} has no meaning for the examples of {task!r}: leave it out.")
        self._splits_of = functools.cache(self.read_source)  # several splits of a source are read
        self.task = classifier.predicted_task()
        self.num_classes = self.task.num_classes(classifier.model.config)

    def read_source(self, source: str) -> tuple[Mapping[str, Iterable[Row]], str | None]:
        """Return the rows of each split of a source, and the commit of a data set on the Hub.

        Raises:
            SwagError: It cannot be read at all.
        """
        return rows_by_split(source)

    def class_numbers(self, *, what: str = "label") -> ClassNumbers:
        """Return the classes of the model, by which rows are labelled.

        Raises:
            SwagError: ``--labels`` does not fit the model.
        """
        recorded = self.classifier.posterior.record.labels
        return ClassNumbers(self.options, self.classifier.model.config, recorded=recorded, what=what)

    @abstractmethod
    def encode(self, rows: Sequence[Row], *, needs_labels: bool) -> Encoded:
        """Encode the rows of a split.

        Raises:
            SwagError: A row cannot be used.
        """

    def read(self, split: str) -> EncodedExamples:
        """Read the examples of a split, with their labels.

        Raises:
            SwagError: The data cannot be read, has no such split, or has an example that cannot be used.
        """
        return self._read(self.options.dataset, split, needs_labels=True)

    def read_ood(self, source: str, split: str) -> EncodedExamples:
        """Read examples of another kind: those that are marked as out of scope, or all where none is; labels are not needed.

        Raises:
            SwagError: As `read`.
        """
        return self._read(source, split, needs_labels=False)

    def has_split(self, split: str) -> bool:
        """Return whether the data has a split."""
        splits, _ = self._splits_of(self.options.dataset)
        return split in splits

    def _read(self, source: str, split: str, *, needs_labels: bool) -> EncodedExamples:
        splits, revision = self._splits_of(source)
        name = "train" if not needs_labels and list(splits) == ["train"] else split_named(source, split, splits)
        rows = list(splits[name])
        if not rows:
            raise SwagError(f"{source!r} has no examples in the split {name!r}.")
        for row in rows:
            if (problem := row.problem or unicode_problem(row.values)) is not None:
                refuse(row, problem)
        if not needs_labels:
            rows = [row for row in rows if _is_out_of_scope(row)] or rows
        own = self.options.dataset_name if source == self.options.dataset else None
        return EncodedExamples(own or name_of_source(source), name, revision, *self.encode(rows, needs_labels=needs_labels))


def _is_out_of_scope(row: Row) -> bool:
    """Return whether a row's label says that it is of another kind."""
    return any(str(value) in OUT_OF_SCOPE for name, value in row.values.items() if str(name).lower() in LABEL_COLUMNS)
