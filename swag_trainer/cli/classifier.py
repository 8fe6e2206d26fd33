"""A model with its posterior, loaded as everybody loads it, and texts as it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline


def load_classifier(model: str, *, device: str | None = None, **request: Any) -> SwagTextClassificationPipeline:
    """Load a folder or a repository with ``pipeline("swag-text-classification")``.

    Args:
        model: A folder, or "user/name" on the Hub.
        device: Such as "cpu" or "cuda:0"; None for what transformers chooses.
        **request: What the pipeline is asked for, see `SwagTextClassificationPipeline`.

    Raises:
        SwagError: No posterior there, or one that does not fit.
    """
    from transformers import pipeline

    SwagPosterior.from_pretrained(
        model
    )  # says what is missing; transformers would first look for a config.json, and speak of that
    return pipeline("swag-text-classification", model=model, device=device, **request)


def class_names(classifier: SwagTextClassificationPipeline) -> list[str]:
    """Return the names of the classes in the order of the logits."""
    config = classifier.model.config
    return [config.id2label[index] for index in range(config.num_labels)]


def tokenised(tokenizer: Any, texts: Sequence[str], labels: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Return rows as the Trainer and the predictor take them, cut at the tokenizer's own greatest length."""
    columns = dict(tokenizer(list(texts), truncation=True))
    if labels is not None:
        columns["labels"] = labels.tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
