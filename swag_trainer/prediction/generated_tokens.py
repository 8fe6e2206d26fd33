"""Generated sequences with the draws' scores of their tokens: how they are recorded, and where each sequence ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
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


class TokenRecorder(StoppingCriteria):
    """Scores each token when it has been chosen; it never stops anything.

    Args:
        scores_of: Logits of the draws, shape (S, R, 1, V), and tokens, shape (R, 1) -> their scores, shapes (S, R, 1), (R, 1), (R, 1).

    Attributes:
        logits: To be set to those that the next token is chosen from, before it is chosen.
        steps: The scores of the tokens so far.
    """

    def __init__(self, scores_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> None:
        self._scores_of = scores_of
        self.logits = torch.empty(0)
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Score the last token of each sequence; return that none is finished. Shape (R,), bool."""
        self.steps.append(self._scores_of(self.logits, input_ids[:, -1:]))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def num_generated(tokens: Tensor, eos: int | Sequence[int] | None, pad: int | None) -> Tensor:
    """Return how many tokens of each sequence were generated, up to the first one that ends a text.

    A sequence that something else stopped (a string) in a batch whose others go on is followed by padding, which does not count.

    Args:
        tokens: Generated tokens, and padding behind the sequences that were finished earlier. Shape (R, T).
        eos: The tokens that end a text.
        pad: The padding token; None for the first of these.

    Returns:
        Shape (R,), at least 1 each.

    >>> num_generated(torch.tensor([[5, 2, 0, 0], [5, 6, 0, 0], [5, 6, 7, 8]]), 2, 0).tolist()
    [2, 2, 4]
    """
    ends = torch.tensor([eos] if isinstance(eos, int) else list(eos or ()), dtype=torch.long, device=tokens.device)
    width = tokens.shape[1]
    is_end = torch.isin(tokens, ends)
    to_end = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, width)
    if pad is None or pad in ends.tolist():
        return to_end
    places = torch.arange(1, width + 1, device=tokens.device)
    return torch.minimum(to_end, (places * (tokens != pad)).amax(dim=1).clamp_min(1))
