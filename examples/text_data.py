"""A labelled task for the examples: its three splits as swag-trainer's own commands read them, class numbers, and text of no class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_data import balanced, read_foreign, read_text

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TextTask:
    """A classification task: texts and label numbers per split, and foreign texts that belong to no class.

    Attributes:
        name: What the data is called.
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
                chosen = balanced(targets[split], rows, 0 if split == "test" else seed)
                texts[split] = [texts[split][index] for index in chosen]
                targets[split] = targets[split][chosen]
        return TextTask(self.name, self.labels, texts, targets, self.foreign)


def read_task(source: str, *, foreign_source: str | None = None, max_foreign: int = 300) -> TextTask:
    """Read a task.

    Rows that are marked as out of scope are foreign text: those of the test split are kept to see whether a model notices them, none is
    trained on. Data without a validation split gets one, the same as in swag-trainer's commands.

    Args:
        source: A file, a folder or the name of a data set on the Hub ("name" or "name:config").
        foreign_source: Where foreign text comes from, if ``source`` has none; all of its test split, if no row there is marked.
        max_foreign: How many foreign texts to keep.

    Raises:
        SwagError: The data cannot be read, lacks a split, or has a label that no training row has.
    """
    data = {split: read_text(TextOptions(dataset=source), split) for split in SPLITS}
    labels = sorted(set(data["train"].labels))
    foreign = data["test"] if foreign_source is None else read_foreign(foreign_source, "test")
    return TextTask(
        name=data["train"].name,
        labels=labels,
        texts={split: rows.texts for split, rows in data.items()},
        targets={split: rows.numbers(labels) for split, rows in data.items()},
        foreign=foreign.foreign[:max_foreign],
    )
