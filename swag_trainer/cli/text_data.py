"""Labelled text: a data set on the Hub, a CSV, TSV or JSON file, or a folder with one of those per split."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swag_trainer.cli.labels import class_names_of
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.split_names import split_named, usual_split
from swag_trainer.cli.splits import MOST_HELD_OUT, stratified
from swag_trainer.cli.text_sources import Columns, Example, examples_by_split, name_of_source
from swag_trainer.errors import SwagError

OUT_OF_SCOPE = {"oos", "out_of_scope", "out-of-scope"}


@dataclass(frozen=True)
class LabelledText:
    """The texts of one split.

    Attributes:
        name: What the data is called; no path.
        split: Which part of it, described where it is not one of the data's own.
        revision: Commit on the Hub, None for files.
        texts: Texts of a class.
        labels: Name of the class of each.
        ood: Texts that are marked as out of scope: they belong to no class.
    """

    name: str
    split: str
    revision: str | None
    texts: list[str]
    labels: list[str]
    ood: list[str]

    def numbers(self, classes: Sequence[str]) -> np.ndarray:
        """Return the number of each text's class. Shape (N,).

        Raises:
            SwagError: A label that is none of the classes.
        """
        number = {label: index for index, label in enumerate(classes)}
        unknown = sorted(set(self.labels) - set(number))
        if unknown:
            raise SwagError(
                f"{self.labels.count(unknown[0])} examples of {self.name!r} ({self.split}) have the label {unknown[0]!r}, the model has "
                f"{', '.join(map(repr, classes[:10]))}{' ...' if len(classes) > 10 else ''}. Is this the data it was trained on? "
                "Out-of-distribution text is measured with --ood."
            )
        return np.array([number[label] for label in self.labels], dtype=np.int64)


def read_text(source: TextOptions, split: str) -> LabelledText:
    """Read one split of the data that a command was given.

    Where the data has no split "validation", a stratified fifth of the training examples (at most 500, always the same) is held out for
    it; where it has no split "test" either, another fifth is the test split. Examples without a label are left out.

    Warns:
        UserWarning: How many examples have no label, and which classes have one example, which is not held out.

    Raises:
        SwagError: The data cannot be read, has no such split, lacks a column, has an example without text, or labels of another task.
    """
    return _read(source.dataset, split, source.dataset_name, (source.text_column, source.label_column))


def read_ood(source: str, split: str) -> LabelledText:
    """Read out-of-distribution text: what is marked as out of scope, or all of the split where nothing is.

    Raises:
        SwagError: As `read_text`.
    """
    data = _read(source, split, None, (None, None), needs_labels=False)
    return LabelledText(data.name, data.split, data.revision, [], [], data.ood or data.texts)


def read_any_text(source: str, split: str | None, text_column: str | None) -> list[Example]:
    """Read the texts of a split, or of all splits; labels are not needed. An example that cannot be read has a ``problem``.

    Raises:
        SwagError: As `read_text`, but for single examples.
    """
    splits, _ = examples_by_split(source, (text_column, None), needs_labels=False)
    wanted = list(splits) if split is None else [split_named(source, split, splits)]
    examples = [example for name in wanted for example in splits[name]]
    if all(example.problem is not None for example in examples):
        _labelled(examples, source, needs_labels=False)
    return examples


def _read(source: str, split: str, name: str | None, columns: Columns, *, needs_labels: bool = True) -> LabelledText:
    splits, revision = examples_by_split(source, columns, needs_labels=needs_labels)
    parts = _PARTS[_missing_parts(splits) if needs_labels else ()]
    wanted = usual_split(split)
    if not needs_labels and list(splits) == ["train"]:
        wanted = "train"  # all of the only file: nothing was trained on it
    if wanted in parts:
        rows = _labelled(splits["train"], f"{source!r} (train)", needs_labels)
        rows, name_of_split = _part(rows, wanted, parts), parts[wanted]
    else:
        name_of_split = split_named(source, wanted, splits)
        rows = _labelled(splits[name_of_split], f"{source!r} ({name_of_split})", needs_labels)
    if not rows:
        raise SwagError(f"{source!r} has no examples in the split {wanted!r}.")
    return LabelledText(
        name=name or name_of_source(source),
        split=name_of_split,
        revision=revision,
        texts=[text for text, label in rows if label not in OUT_OF_SCOPE],
        labels=[label for _, label in rows if label not in OUT_OF_SCOPE],
        ood=[text for text, label in rows if label in OUT_OF_SCOPE],
    )


# What the parts of a training split are called, by which splits the data lacks.
_PARTS: dict[tuple[str, ...], dict[str, str]] = {
    (): {},
    ("validation",): {"train": "train, without a part held out", "validation": "train, a part held out"},
    ("validation", "test"): {
        "train": "train, without two parts held out",
        "validation": "train, a part held out",
        "test": "train, a second part held out",
    },
}


def _missing_parts(splits: Mapping[str, Any]) -> tuple[str, ...]:
    if "train" not in splits or "validation" in splits:
        return ()
    return ("validation",) if "test" in splits else ("validation", "test")


def _labelled(examples: Iterable[Example], where: str, needs_labels: bool) -> list[tuple[str, str]]:
    """Return texts with the names of their classes; an example that cannot be read is refused, one without label is left out."""
    examples = list(examples)
    for example in examples:
        if example.problem is not None:
            raise SwagError(f"The example in {example.where} cannot be used: {example.problem}")
    if not needs_labels:
        return [(example.text, str(example.label)) for example in examples]
    names = class_names_of([example.label for example in examples], where)
    without = [example for example, name in zip(examples, names, strict=True) if name is None]
    if without and len(without) == len(examples):
        raise SwagError(f"None of the {len(examples)} examples in {where} has a label.")
    if without:
        warnings.warn(
            f"{len(without)} of {len(examples)} examples in {where} have no label and are left out, the first in {without[0].where}.",
            stacklevel=5,
        )
    return [(example.text, name) for example, name in zip(examples, names, strict=True) if name is not None]


def _part(rows: list[tuple[str, str]], wanted: str, parts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the part of the training examples that is ``wanted``: always the same for the same data."""
    in_scope = [row for row in rows if row[1] not in OUT_OF_SCOPE]
    classes = sorted({label for _, label in in_scope})
    targets = np.array([classes.index(label) for _, label in in_scope], dtype=np.int64)
    single = [name for index, name in enumerate(classes) if (targets == index).sum() < 2]
    if single:
        warnings.warn(
            f"{len(single)} classes have one example, which stays in training, so that nothing held out is of them: "
            f"{', '.join(map(repr, single[:10]))}{' ...' if len(single) > 10 else ''}.",
            stacklevel=5,
        )
    left, size = np.arange(len(targets)), min(len(targets) // 5, MOST_HELD_OUT)
    chosen: dict[str, np.ndarray] = {}
    for name in parts:
        if name != "train":
            chosen[name] = left[stratified(targets[left], size, seed=0)]
            left = np.setdiff1d(left, chosen[name])
    chosen["train"] = left
    ood = [row for row in rows if row[1] in OUT_OF_SCOPE] if wanted == "test" else []
    return [in_scope[index] for index in chosen[wanted].tolist()] + ood
