"""Held-out examples for `swag-trainer tune`, as the model of the posterior's task takes them: labelled or tagged texts, or questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import DataCollatorForTokenClassification, default_data_collator

from swag_trainer.cli.classifier import class_names, find_task, load_classifier, load_pipeline, tokenised
from swag_trainer.cli.questions import is_multiple_choice, read_questions
from swag_trainer.cli.tagged_text import read_tags
from swag_trainer.cli.text_data import read_text
from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.token_classification import TokenClassification


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
    """

    classifier: Any
    rows: list[dict[str, Any]]
    train_rows: list[dict[str, Any]] | None
    num_classes: int
    name: str
    split: str
    revision: str | None
    data_collator: Callable[[list[Any]], Any] = default_data_collator


def held_out_examples(options: Any, posterior: WeightPosterior) -> HeldOutExamples:
    """Read the examples of a split, and load the model that they are for.

    Args:
        options: Of `swag-trainer tune`.
        posterior: The posterior that is tuned.

    Raises:
        SwagError: The data or the model cannot be used, or the task has neither classes nor choices.
    """
    posterior, task = find_task(options, posterior)
    if is_multiple_choice(task):
        return _questions(options, posterior, task)
    if isinstance(task, TokenClassification):
        return _tagged(options, posterior, task)
    data = read_text(options, options.split)
    classifier = load_classifier(options, posterior=posterior, device=options.device)
    classes = class_names(classifier)
    train = None if options.train_split is None else read_text(options, options.train_split)

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


def _questions(options: Any, posterior: WeightPosterior, task: Task) -> HeldOutExamples:
    _refuse_train_split(options, task)
    classifier = load_pipeline(options, posterior, task, device=options.device)
    questions = read_questions(options, options.dataset, options.split, classifier)
    return HeldOutExamples(
        classifier=classifier,
        rows=questions.rows,
        train_rows=None,
        num_classes=task.num_classes(None),
        name=questions.name,
        split=questions.split,
        revision=None,
        data_collator=classifier.data_collator,
    )


def _tagged(options: Any, posterior: WeightPosterior, task: Task) -> HeldOutExamples:
    _refuse_train_split(options, task)
    classifier = load_pipeline(options, posterior, task, device=options.device)
    tagged = read_tags(options, options.split, classifier)
    return HeldOutExamples(
        classifier=classifier,
        rows=tagged.rows,
        train_rows=None,
        num_classes=task.num_classes(classifier.model.config),
        name=tagged.name,
        split=tagged.split,
        revision=tagged.revision,
        data_collator=DataCollatorForTokenClassification(classifier.tokenizer),
    )


def _refuse_train_split(options: Any, task: Task) -> None:
    if options.train_split is not None:
        raise SwagError(f"--train-split is for the OOD score, and {task.name!r} has none: leave it out.")
