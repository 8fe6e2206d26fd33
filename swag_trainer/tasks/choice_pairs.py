"""Multiple-choice questions as inputs of an encoder: each choice as a pair with its question, and a data collator."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swag_trainer.errors import SwagError, shortened
from swag_trainer.tasks.question_encoder import PRESENT
from swag_trainer.tasks.questions import Question
from swag_trainer.tasks.right_choices import are_answered

logger = logging.getLogger(__name__)


class ChoicePairCollator:
    """Makes a batch of multiple-choice questions for a model such as `transformers.AutoModelForMultipleChoice` loads.

    Args:
        tokenizer: Of the model.
        max_choices: How many choices a question has at most.
        max_length: Most positions that the model takes; longer pairs are truncated. None without a limit.

    Attributes:
        num_truncated: How many pairs were truncated so far.
    """

    def __init__(self, tokenizer: Any, max_choices: int = 5, *, max_length: int | None = None) -> None:
        self.num_truncated = 0
        self._tokenizer, self._max_choices, self._limit = tokenizer, max_choices, max_length

    def encode(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs for a question, a list for each choice, and its ``labels`` if the right choice is known.

        Args:
            row: As `Question.from_row` reads it.

        Raises:
            SwagError: The row is no question.
        """
        question = Question.from_row(row, max_choices=self._max_choices)
        pairs = [question.text] * len(question.choices), list(question.choices)
        encoded = self._tokenizer(*pairs, truncation=self._limit is not None, max_length=self._limit)
        truncated = sum(bool(part.overflowing) for part in getattr(encoded, "encodings", None) or ())
        if truncated and self.num_truncated == 0:
            logger.warning("A question is too long for the model and was truncated; the collator's num_truncated counts them.")
        self.num_truncated += truncated
        inputs = {name: [list(part) for part in parts] for name, parts in encoded.items()}
        return inputs if question.answer is None else inputs | {"labels": question.answer}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the tensors of a batch, of shape (B, C, T), with `PRESENT` of shape (B, C) and, if the rows have them, ``labels`` (B,).

        C is the number of choices of the question that has most; in the place of a missing one stands the first choice.

        Raises:
            SwagError: A row is no question, or some rows have an answer and others have none.
        """
        encoded = [row if "input_ids" in row else self.encode(row) for row in rows]
        answered = are_answered(encoded)
        counts = [len(row["input_ids"]) for row in encoded]
        if max(counts) > self._max_choices:
            raise SwagError(f"A question has {max(counts)} choices; at most max_choices={self._max_choices} are possible.")
        names = [name for name in self._tokenizer.model_input_names if all(name in row for row in encoded)]
        if "input_ids" not in names:
            raise SwagError(f"The tokenizer makes no input_ids of a question: {shortened(repr(dict(encoded[0])))}.")
        flat = {
            name: [part for row, count in zip(encoded, counts, strict=True) for part in _filled(row[name], count, max(counts))]
            for name in names
        }
        padded = self._tokenizer.pad(flat, padding_side="right", return_tensors="pt")
        batch = {name: value.unflatten(0, (len(encoded), max(counts))) for name, value in padded.items()}
        batch[PRESENT] = torch.tensor([[1] * count + [0] * (max(counts) - count) for count in counts])
        return batch if not answered else batch | {"labels": torch.tensor([row["labels"] for row in encoded])}


def _filled(parts: list[list[int]], count: int, width: int) -> list[list[int]]:
    return [*parts, *[parts[0]] * (width - count)]
