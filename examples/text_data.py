"""Reads labelled text for the examples: a Hub data set, a JSON Lines or CSV file, or a folder with one of those per split."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OUT_OF_SCOPE = {"oos", "out_of_scope", "out-of-scope"}
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

Row = tuple[str, str, str]  # split, text, label


@dataclass(frozen=True)
class TextTask:
    """A classification task: texts and label numbers per split, and foreign texts that belong to no class.

    Attributes:
        name: Where it came from.
        labels: Names of the classes.
        texts: Per split "train", "validation" and "test".
        targets: Class numbers for the same splits.
        foreign: Texts of the test split that belong to no class; may be empty.
    """

    name: str
    labels: list[str]
    texts: dict[str, list[str]]
    targets: dict[str, np.ndarray]
    foreign: list[str]

    def subset(
        self, train_rows: int | None, validation_rows: int | None, *, seed: int, test_rows: int | None = None
    ) -> TextTask:
        """Keep some rows of the splits, as equal in number per class as can be, chosen by the seed; test rows are the same for all."""
        texts, targets = dict(self.texts), dict(self.targets)
        for split, rows in (("train", train_rows), ("validation", validation_rows), ("test", test_rows)):
            if rows is not None and rows < len(texts[split]):
                chosen = _balanced(targets[split], rows, 0 if split == "test" else seed)
                texts[split] = [texts[split][index] for index in chosen]
                targets[split] = targets[split][chosen]
        return TextTask(self.name, self.labels, texts, targets, self.foreign)


def read_task(source: str, *, foreign_source: str | None = None, max_foreign: int = 300) -> TextTask:
    """Read a task.

    Rows with the label "oos" or "out_of_scope" are foreign text: those of the test split are kept to see whether a model notices
    them, none is trained on. Without a validation split, a fifth of the training rows (at most 500) becomes one.

    Args:
        source: A file, a folder or the name of a data set on the Hub ("name" or "name:config").
        foreign_source: Where foreign text comes from, if ``source`` has none.
        max_foreign: How many foreign texts to keep.
    """
    rows = list(_read_rows(source))
    foreign = [text for split, text, label in rows if label in OUT_OF_SCOPE and split == "test"]
    if foreign_source is not None:
        foreign = [text for split, text, label in _read_rows(foreign_source) if label in OUT_OF_SCOPE and split == "test"]
    rows = [row for row in rows if row[2] not in OUT_OF_SCOPE]
    labels = sorted({label for split, _, label in rows if split == "train"})
    number = {label: index for index, label in enumerate(labels)}
    texts: dict[str, list[str]] = {split: [] for split in ("train", "validation", "test")}
    targets: dict[str, list[int]] = {split: [] for split in texts}
    for split, text, label in rows:
        if split in texts and label in number:
            texts[split].append(text)
            targets[split].append(number[label])
    arrays = {split: np.array(values, dtype=np.int64) for split, values in targets.items()}
    if not texts["validation"]:
        held_out = set(_balanced(arrays["train"], min(len(texts["train"]) // 5, 500), seed=0).tolist())
        for split, keep in (("validation", True), ("train", False)):
            chosen = [index for index in range(len(targets["train"])) if (index in held_out) == keep]
            arrays[split] = np.array([targets["train"][index] for index in chosen], dtype=np.int64)
            texts[split] = [texts["train"][index] for index in chosen]
    missing = [split for split in texts if not texts[split]]
    if missing:
        raise SystemExit(
            f"{source!r} has no rows for the split {missing[0]!r}; splits found: {sorted({row[0] for row in rows})}."
        )
    return TextTask(Path(source).name, labels, texts, arrays, foreign[:max_foreign])


def _balanced(targets: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Take rows class by class in turns, in an order that the seed decides."""
    order = np.random.default_rng(seed).permutation(len(targets))
    taken: dict[int, int] = {}
    turn = []
    for index in order:
        turn.append(taken.setdefault(int(targets[index]), 0))
        taken[int(targets[index])] += 1
    return np.sort(order[np.argsort(turn, kind="stable")[:rows]])


def _read_rows(source: str) -> Iterable[Row]:
    path = Path(source)
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.is_dir() and (file / "seq.in").is_file():  # a text a line, its label on the same line of the other file
                texts, labels = ((file / name).read_text(encoding="utf-8").splitlines() for name in ("seq.in", "label"))
                yield from ((_split(file.name), text, label) for text, label in zip(texts, labels, strict=True))
            elif file.suffix in (".csv", ".jsonl"):
                yield from _read_file(file)
    elif path.is_file():
        yield from _read_file(path)
    else:
        yield from _read_hub(source)


def _read_file(file: Path) -> Iterable[Row]:
    with open(file, encoding="utf-8", newline="") as lines:
        records = csv.DictReader(lines) if file.suffix == ".csv" else map(json.loads, lines)
        for record in records:
            text, label = (_first(record, names) for names in (_TEXT_COLUMNS, _LABEL_COLUMNS))
            yield _split(record.get("split") or file.stem), record[text], str(record[label])


def _read_hub(source: str) -> Iterable[Row]:
    from datasets import ClassLabel, load_dataset

    name, _, config = source.partition(":")
    for split, dataset in load_dataset(name, config or None).items():
        text, label = (_first(dataset.features, names) for names in (_TEXT_COLUMNS, _LABEL_COLUMNS))
        feature = dataset.features[label]
        for row in dataset:
            yield _split(split), row[text], feature.int2str(row[label]) if isinstance(feature, ClassLabel) else str(row[label])


def _split(name: str) -> str:
    return _SPLIT_NAMES.get(name, name)


def _first(record: Iterable[str], names: tuple[str, ...]) -> str:
    for name in names:
        if name in record:
            return name
    raise SystemExit(f"None of the columns {names} is there; found {sorted(record)}.")
