"""Sequence classification: one label, several labels or numbers for a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from swag_trainer.errors import SwagError
from swag_trainer.tasks.base import Link, Task, class_numbers


class SequenceClassification(Task):
    """Texts, or pairs of texts, with one event each."""

    name: ClassVar[str] = "swag-text-classification"
    hub_tag: ClassVar[str] = "text-classification"
    auto_model: ClassVar[type] = AutoModelForSequenceClassification
    head: ClassVar[str | tuple[str, ...] | None] = "ForSequenceClassification"
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"

    def read(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits. Shape (B, C), or (S * B, C) of packed outputs.

        Raises:
            SwagError: The model returns none, as one without a head does.
        """
        if isinstance(outputs, Mapping) and "logits" not in outputs:
            raise SwagError(
                f"{self.name!r} needs logits, and the model returns {sorted(outputs)}: it has no classification head."
            )
        return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]

    def features(self, given: Tensor, made: Tensor, logits: Tensor) -> Tensor | None:
        """Return what the head was given for each text. Shape (B, h).

        Heads over the last hidden states of a decoder make logits of all positions, of which the model returns those of one: the
        features are those of the position whose logits were returned. None where there is no such position.
        """
        if given.dim() == 2 and len(given) == len(logits):
            return given
        if given.dim() != 3 or len(given) != len(logits):
            return None
        returned = (made.float() == logits[:, None].float()).all(dim=-1)
        if not returned.any(dim=1).all():
            return None
        return given[torch.arange(len(given), device=given.device), returned.int().argmax(dim=1)]

    def link(self, config: Any) -> Link:
        """Return transformers' own rule for turning a classifier's outputs into predictions (`TextClassificationPipeline`)."""
        problem_type, num_labels = getattr(config, "problem_type", None), getattr(config, "num_labels", 2)
        if problem_type == "regression":
            return "identity"
        if problem_type == "multi_label_classification" or num_labels == 1:
            return "sigmoid"
        return "softmax"

    def labels(self, rows: Sequence[Mapping[str, Any]], num_labels: int) -> np.ndarray:
        """Return the class numbers in the column "labels", "label" or "label_ids". Shape (N,), int64.

        Raises:
            SwagError: No rows, no such column, or a value that is not a class number of the model.
        """
        return class_numbers(rows, num_labels)
