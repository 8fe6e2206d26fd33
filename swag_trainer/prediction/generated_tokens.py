"""Generated sequences with the draws' scores of their tokens: how they are recorded, and where each sequence ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.utils import ModelOutput


@dataclass
class GeneratedTokens(ModelOutput):
    """What `TextGenerator.generate` returns, for R sequences: the rows in their order, each with its ``num_return_sequences``.

    Attributes:
        sequences: Prompts and generated tokens, as transformers returns them. Shape (R, prompt + T).
        lengths: How many tokens of each sequence were generated before it was finished, the last one included. Shape (R,).
        draw_log_probabilities, entropy, aleatoric: As in `TokenScores`; behind a sequence's end they mean nothing. Shapes (R, S, T), (R, T),
            (R, T).
    """

    sequences: Tensor
    lengths: Tensor | None = None
    draw_log_probabilities: Tensor | None = None
    entropy: Tensor | None = None
    aleatoric: Tensor | None = None


class RecordedCriteria(StoppingCriteriaList):
    """The stopping criteria of a generation, which also score each token when it has been chosen, and count those of each sequence.

    A sequence that is finished before others of its batch is followed by padding, which the tokens do not tell from an end that was
    generated, or that a string or a function stopped it.

    Args:
        scores_of: Logits of the draws, shape (S, R, 1, V), and tokens, shape (R, 1) -> their scores, shapes (S, R, 1), (R, 1), (R, 1).

    Attributes:
        logits: To be set to those that the next token is chosen from, before it is chosen.
        steps: The scores of the tokens so far.
        lengths: How many tokens of each sequence were generated before it was finished, the last one included. Shape (R,).
    """

    def __init__(self, scores_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self._scores_of = scores_of
        self._finished = self.lengths = self.logits = torch.empty(0)
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def of(self, criteria: Iterable[StoppingCriteria]) -> Self:
        """Return this with the criteria of the generation."""
        self.extend(criteria)
        return self

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Score the last token of each sequence; return which sequences are finished. Shape (R,), bool."""
        if not self.steps:
            self._finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            self.lengths = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        self.steps.append(self._scores_of(self.logits, input_ids[:, -1:]))
        self.lengths = self.lengths + ~self._finished
        stopped = super().__call__(input_ids, scores, **kwargs)
        self._finished = self._finished | stopped
        return stopped
