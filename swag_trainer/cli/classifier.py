"""A classifier with its posterior, loaded for the pipeline, and texts tokenised for it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import pipeline

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.options import ClassifierOptions
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.lengths import count_truncated
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification
from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline


def load_classifier(
    options: ClassifierOptions, *, posterior: WeightPosterior | None = None, device: str | None = None, **arguments: Any
) -> SwagTextClassificationPipeline:
    """Load a folder or a repository for ``pipeline("swag-text-classification")``; adapter and posterior are read once.

    The pipeline is given the model, not its name: where something is missing, transformers would look for a config.json first, and name
    that in its error.

    Args:
        options: Where adapter, posterior and base model lie.
        posterior: The posterior of that folder or repository, if it was read already.
        device: Such as "cpu" or "cuda:0"; None for what transformers chooses.
        **arguments: Of the pipeline, see `SwagTextClassificationPipeline`.

    Raises:
        SwagError: No posterior there, or one that does not fit.
    """
    loaded = AutoSwagModelForSequenceClassification.from_pretrained(
        options.model,
        posterior=posterior,
        base_model=options.base_model,
        revision=options.revision,
        ignore_mismatched_adapter=options.ignore_mismatched_adapter,
        dtype="auto",
    )
    return pipeline("swag-text-classification", model=loaded, device=device, **arguments)


def class_names(classifier: SwagTextClassificationPipeline) -> list[str]:
    """Return the names of the classes in the order of the logits."""
    config = classifier.model.config
    return [config.id2label[index] for index in range(config.num_labels)]


def tokenised(tokenizer: Any, model: nn.Module, texts: Sequence[str], labels: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Return examples as the Trainer and the predictor take them, truncated at what tokenizer and model can take.

    Warns:
        UserWarning: How many texts were truncated.
    """
    limit = longest_input(tokenizer, model)
    encoded = tokenizer(list(texts), truncation=limit is not None, max_length=limit)
    num_truncated = count_truncated(encoded)
    if num_truncated:
        warnings.warn(f"{num_truncated} of {len(texts)} texts have more than {limit} tokens and are truncated.", stacklevel=2)
    columns = dict(encoded)
    if labels is not None:
        columns["labels"] = labels.tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
