"""Token classification: a label for each token of a text that counts, as in named-entity recognition."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification

from swag_trainer.errors import SwagError
from swag_trainer.tasks.base import Link, Task

LABELS, SPECIAL = "labels", "special_tokens_mask"
IGNORED = -100  # what the Trainer's loss ignores


class TokenClassification(Task):
    """Texts with one event for each token that counts.

    In a batch with labels these are the tokens whose label is not -100: what the Trainer's loss sees, such as the first token of each
    word. Without labels they are the tokens that are not special, by the tokenizer's ``special_tokens_mask``, and without such a mask all
    tokens that are no padding.
    """

    name: ClassVar[str] = "swag-token-classification"
    hub_tag: ClassVar[str] = "token-classification"
    auto_model: ClassVar[type] = AutoModelForTokenClassification
    head: ClassVar[str | None] = "ForTokenClassification"
    peft_task_type: ClassVar[str | None] = "TOKEN_CLS"
    columns: ClassVar[frozenset[str]] = frozenset({LABELS, SPECIAL})
    # Without its padding a text begins at position 0, as alone.
    pads_anywhere: ClassVar[bool] = True

    def inputs(self, batch: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Return what the model takes: the batch without labels, which would cost a loss, and without the mask of special tokens."""
        return {name: value for name, value in batch.items() if name not in self.columns}

    def events(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the text of each token that counts. Shape (E,), on the CPU."""
        return counted(batch).nonzero()[:, 0].cpu()

    def read(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the tokens that count. Shape (E, C).

        Raises:
            SwagError: The model does not give logits for each token.
        """
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]
        kept = counted(batch)
        if logits is None or logits.ndim != 3 or logits.shape[:2] != kept.shape:
            shape = None if logits is None else tuple(logits.shape)
            raise SwagError(
                f"{self.name!r} needs logits of shape (texts, tokens, labels) for {kept.shape[0]} texts of {kept.shape[1]} tokens, and the "
                f"model gives {'none' if shape is None else shape}: it is for another task."
            )
        return logits[kept]

    def restored(self, values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return values of the events at their tokens, 0 at others. (E, C) becomes (B, T, C)."""
        kept = counted(batch)
        whole = values.new_zeros(*kept.shape, values.shape[-1])
        whole[kept.to(values.device)] = values
        return whole

    def link(self, config: Any) -> Link:
        """Return "softmax": a token has one label."""
        return "softmax"

    def num_events(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return how many tokens of each row have a label. Shape (rows,), int64."""
        return np.array([sum(int(label) != IGNORED for label in row[LABELS]) for row in rows], dtype=np.int64)

    def labels(self, rows: Sequence[Mapping[str, Any]], num_labels: int) -> np.ndarray:
        """Return the labels of all tokens that have one, text by text, from the column "labels". Shape (N,), int64.

        Raises:
            SwagError: A row has no label for each of its tokens, or one that the model does not have; or no token has a label.
        """
        found: list[int] = []
        for index, row in enumerate(rows):
            own = row.get(LABELS)
            if own is None or np.ndim(own) != 1 or len(own) != len(row["input_ids"]):
                raise SwagError(
                    f"Row {index} has {LABELS}={str(own)[:50]} for {len(row['input_ids'])} tokens; a class number for each of them is needed, "
                    f"{IGNORED} for a token that does not count."
                )
            for label in map(_number, own):
                if label != IGNORED and not 0 <= label < num_labels:
                    raise SwagError(
                        f"Row {index} has a token with the label {label}; the model has the classes 0 to {num_labels - 1}."
                    )
                found += [label] * (label != IGNORED)
        if not found:
            raise SwagError(f"No token of {len(rows)} texts has a label other than {IGNORED}.")
        return np.array(found, dtype=np.int64)


def counted(batch: Mapping[str, Tensor]) -> Tensor:
    """Return which tokens of a batch are events. Shape (B, T), bool."""
    if LABELS in batch:
        return batch[LABELS] != IGNORED
    mask = batch.get("attention_mask")
    attended = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
    return attended if SPECIAL not in batch else attended & (batch[SPECIAL] == 0)


def _number(label: Any) -> int:
    try:
        return operator.index(label)
    except TypeError as error:
        raise SwagError(f"A token has the label {str(label)[:50]}; a class number is needed.") from error
