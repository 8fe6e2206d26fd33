"""Sources of text: files and folders on this machine, and data sets on the Hub, as examples by split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from swag_trainer.cli.hub_datasets import load_splits
from swag_trainer.cli.split_names import is_usual_split, usual_split
from swag_trainer.cli.text_files import SUFFIXES, Record, is_unicode, read_lines, read_records
from swag_trainer.errors import SwagError

Columns = tuple[str | None, str | None]  # of texts, of labels
LABEL_COLUMNS = ("intent", "label_text", "category", "gold_label", "label", "labels")
_TEXT_COLUMNS = ("text", "utterance", "sentence", "question", "question_stem", "content")
_SCALARS = (str, bool, int, float, type(None))
_MOST_ITEMS = 100  # of a list or an object that is kept beside a prediction: choices are, embeddings are not


class Example(NamedTuple):
    """A text of a file or of a data set.

    Attributes:
        text: The text; empty where there is a problem.
        label: As it stands in the data; None where there is none.
        where: The file and the line, or the data set and the number.
        line: Number of its first line in a file, None elsewhere.
        problem: Why there is no text; None where there is one.
        others: The other columns, the label's among them, as JSON values; of a data set on the Hub those of numbers and texts, and short lists.
    """

    text: str
    label: Any
    where: str
    line: int | None = None
    problem: str | None = None
    others: Mapping[str, Any] = MappingProxyType({})


class Row(NamedTuple):
    """A row of a file or of a data set, whatever its columns.

    Attributes:
        values: Its columns by name.
        where: The file and the line, or the data set and the number.
        problem: Why it cannot be read; None where it can.
        folder: Where paths in it start from; None on the Hub.
    """

    values: Mapping[str, Any]
    where: str
    problem: str | None = None
    folder: Path | None = None


def examples_by_split(
    source: str, columns: Columns, *, needs_labels: bool
) -> tuple[Mapping[str, Iterable[Example]], str | None]:
    """Read a source of text.

    Args:
        source: A file, a folder, or a data set on the Hub, "name" or "name:config".
        columns: Names of the columns of texts and labels; None for the usual names.
        needs_labels: Whether an example without a column of labels has a problem.

    Returns:
        The examples of each split, and the commit of a data set on the Hub.

    Raises:
        SwagError: It cannot be read at all.
    """
    path = Path(source)
    return (_of_files(path, columns, needs_labels), None) if path.exists() else _of_hub(source, columns, needs_labels)


def _of_files(path: Path, columns: Columns, needs_labels: bool) -> dict[str, list[Example]]:
    splits = {
        split: [_of_record(where, record, columns, needs_labels) for where, record in records]
        for split, records in records_by_split(path).items()
    }
    for folder in sorted(path.iterdir()) if path.is_dir() else []:
        if (folder / "seq.in").is_file():
            splits.setdefault(usual_split(folder.name), []).extend(_of_parallel_files(folder))
    if not splits:
        raise SwagError(f"{str(path)!r} has no text: no file that ends in {', '.join(SUFFIXES)}, or an empty one.")
    return splits


def records_by_split(path: Path) -> dict[str, list[tuple[str, Record]]]:
    """Read the records of a file, or of the files of a folder, each with the words for where it stands.

    The column "split" names the split of a record, else the file does.

    Raises:
        SwagError: A file cannot be read.
    """
    splits: dict[str, list[tuple[str, Record]]] = {}
    inside = sorted(path.iterdir()) if path.is_dir() else None
    if inside is None and path.suffix not in SUFFIXES:
        raise SwagError(f"{str(path)!r} is not a file that ends in {', '.join(SUFFIXES)}.")
    files = [path] if inside is None else [each for each in inside if each.is_file() and each.suffix in SUFFIXES]
    alone = inside is None or len(list(filter(_has_text, inside))) == 1
    for file in files:
        # The only file is the training split, unless its name or a column says otherwise.
        stem = "train" if alone and not is_usual_split(file.stem) else file.stem
        for record in read_records(file):
            split = str(record.values.get("split") or stem)
            where = f"{'item' if file.suffix == '.json' else 'line'} {record.line} of {str(file)!r}"
            splits.setdefault(usual_split(split), []).append((where, record))
    return splits


def _has_text(file: Path) -> bool:
    return (file / "seq.in").is_file() or (file.is_file() and file.suffix in SUFFIXES)


def _of_parallel_files(folder: Path) -> list[Example]:
    """Read a text a line, and its label on the same line of the other file."""
    texts, labels = read_lines(folder / "seq.in"), read_lines(folder / "label")
    if len(texts) != len(labels):
        raise SwagError(f"{str(folder)!r} has {len(texts)} texts and {len(labels)} labels.")
    return [
        Example(text, label, f"line {line} of {str(folder / 'seq.in')!r}", line)
        for line, (text, label) in enumerate(zip(texts, labels, strict=True), start=1)
    ]


def _of_record(where: str, record: Record, columns: Columns, needs_labels: bool) -> Example:
    if record.problem is not None:
        return Example("", None, where, record.line, record.problem)
    return _example(record.values, columns, needs_labels, where, record.line)


def _of_hub(source: str, columns: Columns, needs_labels: bool) -> tuple[dict[str, Iterable[Example]], str | None]:
    datasets, revision = _hub_splits(source)
    splits: dict[str, Iterable[Example]] = {}
    for key, parts in datasets.items():
        rows = [_HubRows(dataset, columns, needs_labels, where) for where, dataset in parts]
        splits[key] = rows[0] if len(rows) == 1 else list(chain(*rows))
    return splits, revision


def _hub_splits(source: str) -> tuple[dict[str, list[tuple[str, Any]]], str | None]:
    """Return the data sets of each split of a source on the Hub, with the words for where they stand, and their commit."""
    name, _, config = source.partition(":")
    loaded, revision = load_splits(name, config or None)
    splits: dict[str, list[tuple[str, Any]]] = {}
    for split, dataset in loaded.items():
        splits.setdefault(usual_split(split), []).append((f"the split {split!r} of {source!r}", dataset))
    return splits, revision


def rows_by_split(source: str) -> tuple[dict[str, Iterable[Row]], str | None]:
    """Read a source of any rows; arguments and errors as for `examples_by_split`. Classes of the Hub's columns have their names."""
    path = Path(source)
    if not path.exists():
        datasets, revision = _hub_splits(source)
        return {split: _NamedRows(parts) for split, parts in datasets.items()}, revision
    folder = path if path.is_dir() else path.parent
    splits = {
        split: [Row(record.values, where, record.problem, folder) for where, record in records]
        for split, records in records_by_split(path).items()
    }
    return dict(splits), None


@dataclass(frozen=True)
class _NamedRows:
    """Rows of data sets on the Hub, read when they are asked for."""

    parts: Sequence[tuple[str, Any]]

    def __iter__(self) -> Iterator[Row]:
        for where, dataset in self.parts:
            classes = {name: feature for name, feature in dataset.features.items() if hasattr(_inner(feature), "int2str")}
            for number, record in enumerate(dataset, start=1):
                named = {name: _class_names(record[name], _inner(feature)) for name, feature in classes.items()}
                yield Row(record | named, f"example {number} of {where}")


def _inner(feature: Any) -> Any:
    return getattr(feature, "feature", feature)


def _class_names(value: Any, feature: Any) -> Any:
    """Return the names of class numbers; numbers below 0, which stand for no class, and what is none stay as they are."""
    if isinstance(value, list):
        return [_class_names(each, feature) for each in value]
    return feature.int2str(value) if isinstance(value, int) and 0 <= value < feature.num_classes else value


@dataclass(frozen=True)
class _HubRows:
    """Rows of a data set that are read when they are asked for: most commands want one split of several."""

    dataset: Any
    columns: Columns
    needs_labels: bool
    where: str

    def __iter__(self) -> Iterator[Example]:
        label = named_column(self.dataset.features, self.columns[1], LABEL_COLUMNS)
        feature = self.dataset.features.get(label)
        for number, record in enumerate(self.dataset, start=1):
            if label is not None and hasattr(feature, "int2str"):
                is_missing = record[label] in (None, -1)  # -1 is the label of a test split whose labels are kept secret
                record = record | {label: None if is_missing else feature.int2str(record[label])}
            yield _example(record, self.columns, self.needs_labels, f"example {number} of {self.where}", None)


def _example(record: Mapping[str, Any], columns: Columns, needs_labels: bool, where: str, line: int | None) -> Example:
    names = [named_column(record, given, usual) for given, usual in zip(columns, (_TEXT_COLUMNS, LABEL_COLUMNS), strict=True)]
    text, label = (None if name is None else record[name] for name in names)
    problem = None
    if names[0] is None:
        problem = missing_column(record, columns[0], _TEXT_COLUMNS, "--text-column")
    elif names[1] is None and needs_labels:
        problem = missing_column(record, columns[1], LABEL_COLUMNS, "--label-column")
    elif not isinstance(text, str):
        problem = f"its text is {repr(text)[:80]}, which is no text."
    elif not text.strip():
        problem = "its text is empty."
    elif not is_unicode(text):
        problem = "its text holds half of a surrogate pair, such as half an emoji, which no encoding has."
    is_file = line is not None
    others = {name: value for name, value in record.items() if name != names[0] and (is_file or _is_json(value))}
    return Example("" if problem else str(text), label, where, line, problem, others)


def _is_json(value: Any) -> bool:
    """Return whether a value of a data set can stand in a record: a number, a text, or a list or an object of some."""
    if isinstance(value, (list, dict)):
        return len(value) <= _MOST_ITEMS and all(
            isinstance(each, _SCALARS) or _is_json(each) for each in (value.values() if isinstance(value, dict) else value)
        )
    return isinstance(value, _SCALARS)


def name_of_source(source: str) -> str:
    """Return what a source is called: the name of a file or folder without its path, or that of a data set on the Hub."""
    path = Path(source)
    return path.name if path.exists() else source


def named_column(record: Iterable[str], given: str | None, usual: tuple[str, ...]) -> str | None:
    """Return the name of a column: the one that was given, or a usual one in capital or small letters; None where there is none."""
    if given is not None:
        return given if given in record else None
    found = {name.lower(): name for name in reversed(list(record)) if isinstance(name, str)}
    return next((found[name] for name in usual if name in found), None)


def missing_column(record: Iterable[str], given: str | None, usual: tuple[str, ...], option: str) -> str:
    """Return the problem of a record without a column; arguments as for `named_column`, and the option that names the column."""
    names = " or ".join(map(repr, usual if given is None else (given,)))
    return f"it has no column {names}, but {sorted(map(str, record))}; {option} names it."


def refuse(row: Row, problem: str) -> NoReturn:
    """Refuse a row.

    Raises:
        SwagError: Always.
    """
    raise SwagError(f"The example in {row.where} cannot be used: {problem}")
