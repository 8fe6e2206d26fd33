"""Labelled text: a data set on the Hub, a JSON Lines or CSV file, or a folder with one of those per split."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swag_trainer.cli.files import require, text_of
from swag_trainer.cli.options import TextOptions
from swag_trainer.errors import SwagError

OUT_OF_SCOPE = {"oos", "out_of_scope", "out-of-scope"}
MOST_HELD_OUT = 500
_TEXT_COLUMNS = ("text", "utterance", "sentence", "question", "content")
_LABEL_COLUMNS = ("intent", "label_text", "category", "label", "labels")
_SPLIT_NAMES = {
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "oos_test": "test",
    "oos_val": "validation",
    "oos_train": "train",
}
Row = tuple[str, str]  # text, label


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

    Where the data has no split "validation", a fifth of the training examples (at most 500, always the same) is held out for it.

    Raises:
        SwagError: The data cannot be read, has no such split, or lacks a column.
    """
    return _read(source.dataset, split, source.dataset_name, (source.text_column, source.label_column))


def read_ood(source: str, split: str) -> LabelledText:
    """Read out-of-distribution text: what is marked as out of scope, or all of the split where nothing is.

    Raises:
        SwagError: As `read_text`.
    """
    data = _read(source, split, None, (None, None), needs_labels=False)
    return LabelledText(data.name, data.split, data.revision, [], [], data.ood or data.texts)


def read_any_text(source: str, split: str | None, text_column: str | None) -> list[str]:
    """Read the texts of a split, or of all splits; labels are not needed.

    Raises:
        SwagError: As `read_text`.
    """
    splits, _ = _splits(source, (text_column, None), needs_labels=False)
    if split is not None and _SPLIT_NAMES.get(split, split) not in splits:
        raise SwagError(f"{source!r} has no split {split!r}; it has {', '.join(map(repr, sorted(splits)))}.")
    wanted = list(splits) if split is None else [_SPLIT_NAMES.get(split, split)]
    return [text for name in wanted for text, _ in splits[name]]


def balanced(targets: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """Return the indices of a balanced subset, in ascending order; the seed decides which examples are in it."""
    order = np.random.default_rng(seed).permutation(len(targets))
    taken: dict[int, int] = {}
    turn = []
    for index in order:
        turn.append(taken.setdefault(int(targets[index]), 0))
        taken[int(targets[index])] += 1
    return np.sort(order[np.argsort(turn, kind="stable")[:num_rows]])


def _read(
    source: str, split: str, name: str | None, columns: tuple[str | None, str | None], *, needs_labels: bool = True
) -> LabelledText:
    path, wanted = Path(source), _SPLIT_NAMES.get(split, split)
    splits, revision = _splits(source, columns, needs_labels)
    name_of_split = wanted
    if "validation" not in splits and "train" in splits and wanted in ("train", "validation"):
        rows = _in_scope(list(splits["train"]))
        classes = sorted({label for _, label in rows})
        targets = np.array([classes.index(label) for _, label in rows])
        held_out = set(balanced(targets, min(len(rows) // 5, MOST_HELD_OUT), seed=0).tolist())
        chosen: Iterable[Row] = [row for index, row in enumerate(rows) if (index in held_out) == (wanted == "validation")]
        name_of_split = "train, a part held out" if wanted == "validation" else "train, without a part held out"
    elif wanted in splits:
        chosen = splits[wanted]
    else:
        raise SwagError(f"{source!r} has no split {wanted!r}; it has {', '.join(map(repr, sorted(splits)))}.")
    rows = list(chosen)
    if not rows:
        raise SwagError(f"{source!r} has no examples in the split {wanted!r}.")
    return LabelledText(
        name=name or (path.name if revision is None and path.exists() else source),
        split=name_of_split,
        revision=revision,
        texts=[text for text, label in rows if label not in OUT_OF_SCOPE],
        labels=[label for _, label in rows if label not in OUT_OF_SCOPE],
        ood=[text for text, label in rows if label in OUT_OF_SCOPE],
    )


def _splits(
    source: str, columns: tuple[str | None, str | None], needs_labels: bool
) -> tuple[Mapping[str, Iterable[Row]], str | None]:
    """Return the rows of each split, and the commit of a data set on the Hub."""
    path = Path(source)
    return (_of_files(path, columns, needs_labels), None) if path.exists() else _of_hub(source, columns, needs_labels)


def _in_scope(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row[1] not in OUT_OF_SCOPE]


def _of_files(path: Path, columns: tuple[str | None, str | None], needs_labels: bool) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {}
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if (file / "seq.in").is_file():  # a text a line, its label on the same line of the other file
            texts, labels = ((text_of(file / name) or "").splitlines() for name in ("seq.in", "label"))
            if len(texts) != len(labels):
                raise SwagError(f"{str(file)!r} has {len(texts)} texts and {len(labels)} labels.")
            splits.setdefault(_SPLIT_NAMES.get(file.name, file.name), []).extend(zip(texts, labels, strict=True))
        elif file.suffix in (".csv", ".jsonl"):
            for line, record in _records(file):
                where = f"line {line} of {str(file)!r}"
                split = str(record.get("split") or file.stem)
                splits.setdefault(_SPLIT_NAMES.get(split, split), []).append(_row(record, columns, needs_labels, where))
        elif path.is_file():
            raise SwagError(f"{str(path)!r} is neither a .jsonl nor a .csv file.")
    if not splits:
        raise SwagError(f"{str(path)!r} has no labelled text: no .jsonl or .csv file, or an empty one.")
    return splits


def _records(file: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """Return the records of a file with the numbers of their lines."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                reader = csv.DictReader(lines)
                yield from ((reader.line_num, record) for record in reader)
                return
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise SwagError(f"Line {number} of {str(file)!r} is not a JSON object.")
                    yield number, record
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise SwagError(f"{str(file)!r} cannot be read as {file.suffix[1:]}: {error}") from error


def _of_hub(
    source: str, columns: tuple[str | None, str | None], needs_labels: bool
) -> tuple[dict[str, Iterable[Row]], str | None]:
    datasets = require("datasets")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    name, _, config = source.partition(":")
    try:
        revision = HfApi().dataset_info(name).sha
    except OfflineModeIsEnabled:
        revision = None  # from the cache, whose commit is not known
    except HFValidationError as error:
        raise SwagError(f"{source!r} is neither a file or folder that exists nor the name of a data set on the Hub.") from error
    except HfHubHTTPError as error:
        raise SwagError(f"The data set {name!r} cannot be loaded from the Hub: {str(error)[:300]}") from error
    loaded = datasets.load_dataset(name, config or None, revision=revision)
    splits: dict[str, Iterable[Row]] = {}
    for split, dataset in loaded.items():
        key = _SPLIT_NAMES.get(split, split)
        rows = _HubRows(dataset, columns, needs_labels, f"the split {split!r} of {source!r}")
        splits[key] = [*splits[key], *rows] if key in splits else rows
    return splits, revision


@dataclass(frozen=True)
class _HubRows:
    """Rows of a data set that are read when they are asked for: most commands want one split of several."""

    dataset: Any
    columns: tuple[str | None, str | None]
    needs_labels: bool
    where: str

    def __iter__(self) -> Any:
        names = self.dataset.features
        label = _column(names, self.columns[1], _LABEL_COLUMNS, self.where, is_required=self.needs_labels)
        feature = names.get(label)
        for record in self.dataset:
            if label is not None and hasattr(feature, "int2str"):
                record = record | {label: feature.int2str(record[label])}
            yield _row(record, self.columns, self.needs_labels, self.where)


def _row(record: Mapping[str, Any], columns: tuple[str | None, str | None], needs_labels: bool, where: str) -> Row:
    text = record[_column(record, columns[0], _TEXT_COLUMNS, where)]
    column = _column(record, columns[1], _LABEL_COLUMNS, where, is_required=needs_labels)
    label = None if column is None else record[column]
    if not isinstance(text, str) or (needs_labels and label in (None, "")):
        raise SwagError(f"An example without text or without label in {where}: {str(dict(record))[:200]}")
    return text, str(label)


def _column(
    record: Iterable[str], given: str | None, usual: tuple[str, ...], where: str, *, is_required: bool = True
) -> str | None:
    names = usual if given is None else (given,)
    found = next((name for name in names if name in record), None)
    if found is None and is_required:
        option = "--text-column" if usual is _TEXT_COLUMNS else "--label-column"
        raise SwagError(
            f"There is no column {' or '.join(map(repr, names))} in {where}, but {sorted(map(str, record))}; {option} names it."
        )
    return found
