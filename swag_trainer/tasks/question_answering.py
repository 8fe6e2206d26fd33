"""Extractive question answering: the token of a context that an answer starts at, and the one that it ends at."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from swag_trainer.errors import SwagError
from swag_trainer.tasks.base import Link, Task
from swag_trainer.tasks.context_windows import ANSWERABLE, END, START


class QuestionAnswering(Task):
    """Windows of a context behind a question, with two events each: the start of the answer and its end.

    The classes of both are the tokens of the window, counted from its first one that is no padding. Those that an answer cannot start or
    end at, by the column `ANSWERABLE` where a batch has it, have probability 0.
    """

    name: ClassVar[str] = "swag-question-answering"
    hub_tag: ClassVar[str] = "question-answering"
    auto_model: ClassVar[type] = AutoModelForQuestionAnswering
    head: ClassVar[str | None] = "ForQuestionAnswering"
    peft_task_type: ClassVar[str | None] = "QUESTION_ANS"
    columns: ClassVar[frozenset[str]] = frozenset({ANSWERABLE})
    # Without its padding a window begins at position 0, as alone.
    pads_anywhere: ClassVar[bool] = True

    def inputs(self, batch: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Return what the model takes: the batch without the true positions, which would cost a loss, and without `ANSWERABLE`."""
        return {name: value for name, value in batch.items() if name not in (START, END, ANSWERABLE)}

    def events(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the window of each event, its start and then its end. Shape (2 B,), on the CPU."""
        return torch.arange(len(batch["input_ids"])).repeat_interleave(2)

    def read(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of start and end. Shape (2 B, T).

        Raises:
            SwagError: The model does not give a start logit and an end logit for each token.
        """
        found = [outputs.get(name) if isinstance(outputs, Mapping) else None for name in ("start_logits", "end_logits")]
        if any(logits is None or logits.shape != batch["input_ids"].shape for logits in found):
            raise SwagError(
                f"{self.name!r} needs start_logits and end_logits of shape (windows, tokens), and the model gives "
                f"{sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__}: it is for another task, or searches with a beam."
            )
        return torch.stack(found, dim=1).flatten(0, 1)

    def missing(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which tokens an answer cannot start or end at: padding, and those that `ANSWERABLE` leaves out. Shape (2 B, T), bool."""
        mask = batch.get("attention_mask")
        possible = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
        if ANSWERABLE in batch:
            possible = possible & batch[ANSWERABLE].bool()
        return ~possible.repeat_interleave(2, dim=0)

    def num_classes(self, config: Any) -> int:
        """Return how many tokens a window has at most: the model's positions, or a large number where they are not limited."""
        return getattr(config, "max_position_embeddings", None) or 2**31

    def link(self, config: Any) -> Link:
        """Return "softmax": an answer starts at one token, and ends at one."""
        return "softmax"

    def num_events(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return two for each window. Shape (rows,), int64."""
        return np.full(len(rows), 2, dtype=np.int64)

    def labels(self, rows: Sequence[Mapping[str, Any]], num_labels: int) -> np.ndarray:
        """Return the true start and the true end of each window. Shape (2 * rows,), int64.

        Raises:
            SwagError: A row has none, or one that is no token, or no answerable one, of its window.
        """
        if not rows:
            raise SwagError("A data set without rows cannot be measured on.")
        found = np.empty((len(rows), 2), dtype=np.int64)
        for index, row in enumerate(rows):
            mask = [int(value) for value in row.get("attention_mask", [1] * len(row["input_ids"]))]
            first = mask.index(1) if 1 in mask else 0  # padding on the left is taken off
            for column, name in enumerate((START, END)):
                try:
                    place = operator.index(row[name])
                except (TypeError, KeyError) as error:
                    raise SwagError(
                        f"Row {index} has {name}={str(row.get(name))[:50]}; the number of a token is needed. "
                        "swag_trainer.tasks.context_windows.WindowEncoder makes such rows of questions, contexts and answers."
                    ) from error
                if not 0 <= place < len(mask) or not mask[place] or (ANSWERABLE in row and not row[ANSWERABLE][place]):
                    raise SwagError(
                        f"Row {index} has {name}={place}, which is no token of its {sum(mask)} that an answer can start or end at."
                    )
                found[index, column] = place - first
        return found.flatten()
