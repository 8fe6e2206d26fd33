"""Distribution of the answers to a question over the spans of its context, averaged over weight draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swag_trainer.prediction.predictive import Predictive
from swag_trainer.tasks.context_windows import ContextWindow


@dataclass(frozen=True, eq=False)
class AnswerSpans:
    """The spans that an answer may be, and their averaged probabilities.

    Attributes:
        predictive: One event, whose N classes are the spans. Probabilities of shape (1, N).
        characters: First character in the context of each span, and the one behind its last; (0, 0) for no answer. Shape (N, 2).
        has_no_answer: Whether the last span stands for no answer.
    """

    predictive: Predictive
    characters: np.ndarray
    has_no_answer: bool

    @classmethod
    def of(
        cls,
        windows: Sequence[ContextWindow],
        logits: Sequence[Tensor],
        *,
        max_tokens: int,
        has_no_answer: bool,
        temperature: float = 1.0,
        weights: Tensor | None = None,
        members: Tensor | None = None,
    ) -> AnswerSpans:
        """Average the probabilities of all spans over the draws.

        Under one draw a span's logit is that of its start plus that of its end, and a softmax goes over the spans of all windows. The logit
        of no answer is the smallest of the windows' (Devlin et al. 2019, arXiv:1810.04805, the script for SQuAD 2.0): a window without the answer
        has a high one. The average is over these probabilities, so that start and end belong to the same draw.

        Args:
            windows: Of one context.
            logits: Of each window, start and end. Shape (S, 2, T'), T' at least the window's tokens.
            max_tokens: Of the longest span, >= 1.
            has_no_answer: Whether the question may have no answer in its context.
            temperature, weights, members: As in `Predictive.from_logits`.
        """
        scores, characters = [], []
        for window, own in zip(windows, logits, strict=True):
            last = max(place for place, offsets in enumerate(window.offsets) if offsets is not None)
            for begin in window.begins:
                ends = range(begin, min(begin + max_tokens, last + 1))
                scores.append(own[:, 0, begin, None] + own[:, 1, ends.start : ends.stop])
                characters += [(window.offsets[begin][0], window.offsets[end][1]) for end in ends]  # type: ignore[index]
        if has_no_answer:
            none = torch.stack(
                [own[:, 0, window.no_answer] + own[:, 1, window.no_answer] for window, own in zip(windows, logits, strict=True)]
            )
            scores.append(none.amin(dim=0)[:, None])
            characters.append((0, 0))
        predictive = Predictive.from_logits(
            torch.cat(scores, dim=1)[:, None], "softmax", temperature=temperature, weights=weights, members=members
        )
        return cls(predictive, np.array(characters), has_no_answer)

    def ranked(self, count: int | None) -> list[int]:
        """Return the likeliest spans by their numbers, the likeliest first; None for all."""
        return np.argsort(-self.predictive.probabilities[0], kind="stable")[:count].tolist()
