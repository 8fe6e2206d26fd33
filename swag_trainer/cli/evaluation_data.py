"""What `swag-trainer evaluate` measures on: a model with its posterior, and examples as the Trainer takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import default_data_collator

from swag_trainer.cli.any_classifier import load_any_classifier, posterior_of
from swag_trainer.cli.classifier import find_task, tokenised
from swag_trainer.cli.encoded import EncodedExamples, EncodedTask
from swag_trainer.cli.split_names import check_apart
from swag_trainer.cli.task_data import load_task_data
from swag_trainer.cli.text_data import LabelledText, read_ood, read_text
from swag_trainer.distributed import digest
from swag_trainer.errors import SwagError
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.posterior.base import WeightPosterior

Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """A model, and examples that were encoded for it.

    Attributes:
        model: On its device.
        posterior: None for a plain model.
        name, split, revision: Of the examples that are measured.
        texts, rows, labels: These examples. N of each; of tagged texts, N rows and as many words and labels as words have tags.
        validation: For the temperatures of "MAP, temperature" and the like; None where no split was named and the posterior was not tuned
            on a split of this data.
        train: For the posteriors that are fitted; None where no split was named.
        ood_texts, ood: Out-of-distribution examples, if there are any.
        ood_name: What these are called.
        data_collator: Makes a batch of examples.
        clusters: The example of each label, where examples have several.
    """

    model: nn.Module
    posterior: WeightPosterior | None
    name: str
    split: str
    revision: str | None
    texts: list[str]
    rows: Rows
    labels: np.ndarray
    validation: Rows | None
    train: Rows | None
    ood_texts: list[str] | None
    ood: Rows | None
    ood_name: str | None
    data_collator: Callable[[list[Any]], Any] = default_data_collator
    clusters: np.ndarray | None = None


def read_evaluation_data(options: Any, others: Mapping[str, MethodPredictions]) -> EvaluationData:
    """Read the examples and load the model that they are for.

    Args:
        options: Of `swag-trainer evaluate`.
        others: Predictions of other methods, which must be for as many examples.

    Raises:
        SwagError: The data or the model cannot be used, or the task has neither classes nor choices.
    """
    posterior = posterior_of(options)
    if posterior is not None:
        _, task = find_task(options, posterior)
        if (encoded := load_task_data(options, posterior, task)) is not None:
            return _encoded(options, posterior, encoded, others)
    return _text(options, posterior, others)


def _text(options: Any, posterior: WeightPosterior | None, others: Mapping[str, MethodPredictions]) -> EvaluationData:
    examples = read_text(options, options.split)
    _check_counts(others, examples.name, examples.split, len(examples.texts))
    validation, train = (
        None if split is None else read_text(options, split) for split in (options.validation_split, options.train_split)
    )
    ood = None if options.ood is None else read_ood(options.ood, options.ood_split or options.split)
    if ood is not None and set(ood.ood) & set(examples.texts):
        raise SwagError(
            f"Texts of --ood {options.ood!r} are also among the examples to measure; it needs out-of-distribution text."
        )
    if validation is None and (tuned_on := _tuned_on(posterior, examples)) is not None:
        part = read_text(options, "validation" if "," in tuned_on else tuned_on)  # a part held out has a description for a name
        validation = part if part.split == tuned_on else None
    _check_splits(examples, validation, train)
    loaded = load_any_classifier(options, posterior, device=options.device)
    classifier = loaded.named(options.labels, [part for part in (examples, validation, train) if part is not None])
    model, tokenizer = classifier.model, classifier.tokenizer

    def with_labels(part: LabelledText | None) -> Rows | None:
        return None if part is None else tokenised(tokenizer, model, part.texts, part.numbers(classifier.classes))

    return EvaluationData(
        model=model,
        posterior=posterior,
        name=examples.name,
        split=examples.split,
        revision=examples.revision,
        texts=examples.texts,
        rows=tokenised(tokenizer, model, examples.texts),
        labels=examples.numbers(classifier.classes),
        validation=with_labels(validation),
        train=with_labels(train),
        ood_texts=None if ood is None else ood.ood,
        ood=None if ood is None else tokenised(tokenizer, model, ood.ood),
        ood_name=None if ood is None else options.ood_name or _ood_name(ood, examples),
    )


def _encoded(
    options: Any, posterior: WeightPosterior, encoded: EncodedTask, others: Mapping[str, MethodPredictions]
) -> EvaluationData:
    examples = encoded.read(options.split)
    _check_counts(others, examples.name, examples.split, len(examples.texts))
    name = options.validation_split
    if name is None and (tuned_on := _tuned_on(posterior, examples)) is not None and encoded.has_split(tuned_on):
        name = tuned_on
    validation, train = (None if split is None else encoded.read(split) for split in (name, options.train_split))
    _check_splits(examples, validation, train)
    ood = None
    if options.ood is not None:
        if not encoded.takes_ood:
            raise SwagError(f"--ood is for examples with one label each, and {encoded.task.name!r} has several: leave it out.")
        ood = encoded.read_ood(options.ood, options.ood_split or options.split)
        if {_inputs(row) for row in ood.rows} & {_inputs(row) for row in examples.rows}:
            raise SwagError(f"Examples of --ood {options.ood!r} are also among those to measure; it needs other ones.")
    return EvaluationData(
        model=encoded.classifier.model,
        posterior=posterior,
        name=examples.name,
        split=examples.split,
        revision=examples.revision,
        texts=examples.texts,
        rows=examples.rows,
        labels=encoded.task.labels(examples.rows, encoded.num_classes),
        validation=None if validation is None else validation.rows,
        train=None if train is None else train.rows,
        ood_texts=None if ood is None else ood.texts,
        ood=None if ood is None else ood.rows,
        ood_name=None if ood is None else options.ood_name or f"{ood.name}, {ood.split}",
        data_collator=encoded.data_collator,
        clusters=examples.clusters,
    )


def _check_splits(
    examples: LabelledText | EncodedExamples,
    validation: LabelledText | EncodedExamples | None,
    train: LabelledText | EncodedExamples | None,
) -> None:
    """Check again what the command's names said: the only file has two names, and a part may be held out of it."""
    fitted = {"--validation-split": validation, "--train-split": train}
    check_apart(examples.split, {option: None if part is None else part.split for option, part in fitted.items()})


def _inputs(row: Mapping[str, Any]) -> str:
    """Return what tells an encoded example from others, whatever its label."""
    return digest({name: value for name, value in row.items() if name != "labels"})


def _check_counts(others: Mapping[str, MethodPredictions], name: str, split: str, count: int) -> None:
    for other, predictions in others.items():
        if len(predictions.probabilities) != count:
            raise SwagError(
                f"--draws-file {other!r} has predictions for {len(predictions.probabilities)} examples; the split {split!r} of {name!r} has "
                f"{count}."
            )


def _tuned_on(posterior: WeightPosterior | None, examples: LabelledText | EncodedExamples) -> str | None:
    """Return the split that the posterior was tuned on, where it is another one of the data: baselines get as many examples as it did."""
    tuning = None if posterior is None else posterior.tuning
    if tuning is None or tuning.split is None or tuning.split == examples.split:
        return None
    return tuning.split if (tuning.dataset, tuning.revision) == (examples.name, examples.revision) else None


def _ood_name(ood: LabelledText, examples: LabelledText) -> str:
    return f"{ood.name}, {ood.split}" + (", out of scope" if ood.name == examples.name else "")
