"""Log-probabilities and uncertainty of a text's tokens under S weight draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

# Takes the texts that were generated for one prompt, the scored one first, and its `TokenScores.draw_log_probabilities`.
TextScore = Callable[[Sequence[str], np.ndarray], float]

# What `TokenScores.summary` tells of a text.
SUMMARY = ("log_probability", "num_tokens", "entropy", "aleatoric", "mutual_information")


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What S draws give T tokens of a text, each behind the prompt and the tokens before it. In nats; float64.

    The entropies of a token are those of the distribution over the whole vocabulary at its place, whichever token stands there. Of a given
    text everything here is exact for the draws. Of a generated text, too, everything is conditional on the tokens before, which the average of
    the draws chose: entropies along one generated text are one sample of the uncertainty about all texts that could have been generated.

    Attributes:
        tokens: Their numbers. Shape (T,).
        draw_log_probabilities: Of the tokens, under each draw. Shape (S, T).
        entropy: Of the averaged distribution at each place: total uncertainty. Shape (T,).
        aleatoric: Mean over the draws of each draw's entropy. Shape (T,).
        weights: What each draw counts in every mean. Shape (S,), sums to 1; None where all count the same.
    """

    tokens: np.ndarray
    draw_log_probabilities: np.ndarray
    entropy: np.ndarray
    aleatoric: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        """T, the number of tokens."""
        return len(self.tokens)

    @property
    def mutual_information(self) -> np.ndarray:
        """Between each token and the weights, given the tokens before: epistemic uncertainty, >= 0. Shape (T,)."""
        return np.maximum(self.entropy - self.aleatoric, 0.0)  # Jensen; below 0 by rounding only

    @property
    def log_probabilities(self) -> np.ndarray:
        """Of each token in the averaged distribution at its place, which `TextGenerator.generate` chooses from. Shape (T,)."""
        return _log_mean(self.draw_log_probabilities, self.weights)

    @property
    def log_probability(self) -> float:
        """Of the whole text: the logarithm of the mean over the draws of the product over its tokens.

        The "expectation of products" of Malinin and Gales 2021, arXiv:2002.07650: a draw that made the first tokens likelier counts more
        for the later ones. The sum of `log_probabilities` is their "product of expectations".
        """
        return float(_log_mean(self.draw_log_probabilities.sum(axis=1), self.weights))

    def summary(self) -> dict[str, Any]:
        """Return `SUMMARY`: the text's log-probability and number of tokens, and its uncertainties per token, the means over its tokens."""
        means = (float(values.mean()) for values in (self.entropy, self.aleatoric, self.mutual_information))
        return dict(zip(SUMMARY, (self.log_probability, len(self), *means), strict=True))

    def token_rows(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Return every token as a dictionary.

        Args:
            texts: Those of the tokens. Length T.
        """
        columns: Mapping[str, np.ndarray] = {
            "log_probability": self.log_probabilities,
            "entropy": self.entropy,
            "aleatoric": self.aleatoric,
            "mutual_information": self.mutual_information,
        }
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [{"token": text} | dict(zip(columns, row, strict=True)) for text, row in zip(texts, values, strict=True)]


def _log_mean(log_values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return the logarithm of the mean over the first axis, of logarithms."""
    counts = np.full(len(log_values), 1 / len(log_values)) if weights is None else weights
    return logsumexp(log_values, axis=0, b=counts.reshape(-1, *[1] * (log_values.ndim - 1)))
