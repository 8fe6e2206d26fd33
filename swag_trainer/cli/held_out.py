"""Held-out examples for `swag-trainer tune`, as the model of the posterior's task takes them: labelled or tagged texts, or questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import default_data_collator

from swag_trainer.cli.classifier import class_names, find_task, load_classifier, tokenised
from swag_trainer.cli.encoded import EncodedTask
from swag_trainer.cli.split_names import check_apart
from swag_trainer.cli.task_data import load_task_data
from swag_trainer.cli.text_data import read_text
from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior


@dataclass(frozen=True, eq=False)
class HeldOutExamples:
    """Examples with the pipeline that they were made for.

    Attributes:
        classifier: The pipeline, with its model on its device.
        rows: The examples as the Trainer takes them, with their labels.
        train_rows: Examples that the model was trained on, for the OOD score; None without.
        num_classes: C.
        name, split, revision: Of the data.
        data_collator: Makes a batch of examples.
        groups: As `swag_trainer.tune` takes them.
    """

    classifier: Any
    rows: list[dict[str, Any]]
    train_rows: list[dict[str, Any]] | None
    num_classes: int
    name: str
    split: str
    revision: str | None
    data_collator: Callable[[list[Any]], Any] = default_data_collator
    groups: Any = None


def held_out_examples(options: Any, posterior: WeightPosterior) -> HeldOutExamples:
    """Read the examples of a split, and load the model that they are for.

    Args:
        options: Of `swag-trainer tune`.
        posterior: The posterior that is tuned.

    Raises:
        SwagError: The data or the model cannot be used, or the task has neither classes nor choices.
    """
    posterior, task = find_task(options, posterior)
    if (encoded := load_task_data(options, posterior, task)) is not None:
        return _encoded(options, encoded)
    data = read_text(options, options.split)
    classifier = load_classifier(options, posterior=posterior, device=options.device)
    classes = class_names(classifier.model.config)
    train = None if options.train_split is None else read_text(options, options.train_split)
    check_apart(data.split, {"--train-split": None if train is None else train.split})

    def encoded(texts: Any) -> list[dict[str, Any]]:
        return tokenised(classifier.tokenizer, classifier.model, texts.texts, texts.numbers(classes))

    return HeldOutExamples(
        classifier=classifier,
        rows=encoded(data),
        train_rows=None if train is None else encoded(train),
        num_classes=len(classes),
        name=data.name,
        split=data.split,
        revision=data.revision,
    )


def _encoded(options: Any, encoded: EncodedTask) -> HeldOutExamples:
    if options.train_split is not None and not encoded.has_features:
        raise SwagError(f"--train-split is for the OOD score, and {encoded.task.name!r} has none: leave it out.")
    examples = encoded.read(options.split)
    train = None if options.train_split is None else encoded.read(options.train_split)
    check_apart(examples.split, {"--train-split": None if train is None else train.split})
    return HeldOutExamples(
        classifier=encoded.classifier,
        rows=examples.rows,
        train_rows=None if train is None else train.rows,
        num_classes=encoded.num_classes,
        name=examples.name,
        split=examples.split,
        revision=examples.revision,
        data_collator=encoded.data_collator,
        groups=examples.groups,
    )
