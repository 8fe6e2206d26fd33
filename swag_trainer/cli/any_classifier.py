"""Any text classifier for an evaluation: with a posterior, a plain PEFT adapter, or a plain transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from swag_trainer.cli.adapter_head import classes_of_head
from swag_trainer.cli.class_numbers import check_given_labels
from swag_trainer.cli.classifier import class_names, load_classifier
from swag_trainer.cli.options import ClassifierOptions
from swag_trainer.cli.text_data import LabelledText
from swag_trainer.errors import PosteriorNotFoundError, SwagError
from swag_trainer.hub import download
from swag_trainer.posterior import load_posterior
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SavedAdapter


@dataclass(frozen=True, eq=False)
class AnyClassifier:
    """A text classifier.

    Attributes:
        model: On its device.
        tokenizer: Its tokenizer.
        posterior: Its posterior; None for a plain model.
        classes: Names of the classes, in the order of the logits.
    """

    model: nn.Module
    tokenizer: Any
    posterior: WeightPosterior | None
    classes: list[str]

    def named(self, labels: Sequence[str] | None, data: Sequence[LabelledText]) -> AnyClassifier:
        """Return the classifier with the names that its classes have in labelled text.

        A plain model often calls its classes LABEL_0, LABEL_1 and so on, or spells them in capitals.

        Args:
            labels: The names that were given, in the order of the logits; None for the model's own, or for numbers where it has none.
            data: Labelled text.

        Raises:
            SwagError: As many names as classes are needed.
        """
        if labels is not None:
            recorded = None if self.posterior is None else self.posterior.record.labels
            check_given_labels(labels, len(self.classes), recorded)
            return replace(self, classes=list(labels))
        used = {label for part in data for label in part.labels}
        own = {name.casefold(): name for name in self.classes}
        spelt = {name.casefold(): name for name in used}
        if used <= set(self.classes) or len(own) != len(self.classes) or len(spelt) != len(used):
            return self
        if set(spelt) <= set(own):
            return replace(self, classes=[spelt.get(name.casefold(), name) for name in self.classes])
        if all(name == f"LABEL_{index}" for index, name in enumerate(self.classes)):
            numbers = [str(index) for index in range(len(self.classes))]
            if used <= set(numbers):
                return replace(self, classes=numbers)
            raise SwagError(
                f"The model has no names for its {len(self.classes)} classes, the text has {', '.join(map(repr, sorted(used)[:10]))}. Name them "
                "in the order of the model's logits: --labels NAME NAME ..."
            )
        return self


def posterior_of(options: ClassifierOptions) -> WeightPosterior | None:
    """Read the posterior of a folder or a repository; None where there certainly is none."""
    try:
        return load_posterior(
            options.model, revision=options.revision, ignore_mismatched_adapter=options.ignore_mismatched_adapter
        )
    except PosteriorNotFoundError as error:
        if not _is_absent(options.model, error):
            raise
        return None


def load_any_classifier(
    options: ClassifierOptions, posterior: WeightPosterior | None, *, device: str | None = None
) -> AnyClassifier:
    """Load a folder or a repository: with a posterior, with an adapter alone, or with a whole model.

    Args:
        options: Where it lies.
        posterior: What `posterior_of` found there.
        device: Such as "cpu" or "cuda:0"; None for what transformers chooses.

    Raises:
        SwagError: None of the three is there, or it cannot be loaded as it was trained.
    """
    name = options.model
    if posterior is None:
        adapter = _adapter(name, options.revision)
        if adapter is None:
            return _plain_model(name, options.revision, device)
        classifier = load_classifier(
            options, posterior=_point(adapter, options.base_model or adapter.base_model), device=device
        )
    else:
        classifier = load_classifier(options, posterior=posterior, device=device)
    return AnyClassifier(classifier.model, classifier.tokenizer, posterior, class_names(classifier.model.config))


def _is_absent(name: str, error: PosteriorNotFoundError) -> bool:
    """Return whether a file is certainly not there, and not merely out of reach."""
    cause = error.__cause__
    return Path(name).is_dir() or (isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError))


def _adapter(name: str, revision: str | None) -> SavedAdapter | None:
    """Return the adapter of a folder or a repository, None where there is none."""
    folder = Path(name)
    if folder.is_dir():
        return SavedAdapter.read(folder) if (folder / ADAPTER_CONFIG).is_file() else None
    try:
        folder = download(name, (ADAPTER_CONFIG,), revision=revision)
    except PosteriorNotFoundError as error:
        if not _is_absent(name, error):
            raise
        return None
    return SavedAdapter.read(download(name, (ADAPTER_CONFIG, ADAPTER_WEIGHTS), revision=revision))


def _point(adapter: SavedAdapter, base_model: str | None) -> PointPosterior:
    """Return the point estimate at an adapter's weights, with as many labels as its head has: its file has no place for their names."""
    if not base_model:
        raise SwagError("adapter_config.json names no base model: name one with --base-model.")
    size, own = classes_of_head(adapter, base_model)
    labels = [f"LABEL_{index}" for index in range(size)] if size != len(own) else None
    layout = WeightLayout.of(adapter.tensors)
    return PointPosterior(layout, layout.flatten(adapter.tensors), PosteriorRecord(scale=0.0, labels=labels), adapter)


def _plain_model(name: str, revision: str | None, device: str | None) -> AnyClassifier:
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, revision=revision or "main", dtype="auto", trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SwagError(
            f"{name!r} has no posterior and no adapter, and cannot be loaded as a text classifier: {str(error)[:300]}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise SwagError(
            f"{name!r} is not a trained classifier: its checkpoint lacks {missing[:3]}, which would be random at every load."
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    classifier = pipeline("text-classification", model=model, tokenizer=tokenizer, device=device)
    return AnyClassifier(classifier.model.eval(), tokenizer, None, class_names(model.config))
