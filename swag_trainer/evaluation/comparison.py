"""Paired comparison of methods on the same examples: differences of the NLL with intervals, and a verdict in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from swag_trainer.errors import SwagError
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics.bootstrap import Interval, bootstrap_interval
from swag_trainer.metrics.checks import checked
from swag_trainer.metrics.scores import log_losses

MIN_EXAMPLES = 20  # fewer have intervals by bootstrap that are too narrow


@dataclass(frozen=True)
class Comparison:
    """How much lower one method's negative log-likelihood (NLL) is than another's on the same examples.

    Attributes:
        method: Name of the one.
        other: Name of the other.
        difference: NLL of ``other`` minus NLL of ``method``, in nats for each example: above 0 where ``method`` is better.
        num_examples: N.
    """

    method: str
    other: str
    difference: Interval
    num_examples: int

    @property
    def is_better(self) -> bool:
        """Whether the whole interval is in favour of ``method``."""
        return self.difference.low > 0

    @property
    def is_worse(self) -> bool:
        """Whether the whole interval is in favour of ``other``."""
        return self.difference.high < 0

    def __str__(self) -> str:
        """Return the comparison as one sentence.

        >>> str(Comparison("SWAG", "MAP, temperature", Interval(0.021, 0.002, 0.04), 148))
        'SWAG is better than MAP + temperature by 0.021 nats [0.002, 0.040] on 148 examples.'
        """
        method, other = (name.replace(", ", " + ") for name in (self.method, self.other))
        is_lower = self.difference.value >= 0
        value, low, high = self.difference.value, self.difference.low, self.difference.high
        if not is_lower:
            value, low, high = -value, -high, -low
        amount, where = f"{value:.3f} nats [{low:.3f}, {high:.3f}]", f"on {self.num_examples} examples"
        if self.is_better or self.is_worse:
            return f"{method} is {'better' if self.is_better else 'worse'} than {other} by {amount} {where}."
        return f"{method} and {other} cannot be told apart {where}: the NLL of {method} is {'lower' if is_lower else 'higher'} by {amount}."


def compare(
    methods: Mapping[str, MethodPredictions],
    labels: ArrayLike,
    *,
    method: str,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare one method with every other one on the same examples, by paired bootstrap of the NLL.

    A paired difference has a narrower interval than the two NLLs, whose variation from example to example is mostly common to both.

    Args:
        methods: Predictions of each method, by its name.
        labels: True classes. Shape (N,).
        method: Which of them to compare with the others.
        level: Of the intervals, in (0, 1).
        num_resamples: Of the bootstrap.
        seed: Of the resamples.

    Returns:
        A comparison with each other method, the one with the lowest NLL first; none of fewer than 20 examples, whose intervals would be
        too narrow.

    Raises:
        SwagError: ``method`` is none of the methods.
        ValueError: Predictions and labels do not fit, or a number is out of range.
    """
    if method not in methods:
        raise SwagError(f"compare(method=...) is one of {list(methods)}, got {method!r}.")
    losses = {name: log_losses(*checked(each.probabilities, labels)) for name, each in methods.items()}
    own = losses.pop(method)
    if len(own) < MIN_EXAMPLES:
        return []
    return [
        Comparison(
            method,
            other,
            bootstrap_interval(np.mean, losses[other] - own, level=level, num_resamples=num_resamples, seed=seed),
            len(own),
        )
        for other in sorted(losses, key=lambda name: losses[name].mean())
    ]


def verdict(comparisons: Sequence[Comparison], *, without: Sequence[str] = ("SWA",)) -> str | None:
    """Return the comparison with the strongest other method as one sentence; None where there is none.

    Args:
        comparisons: Of one method with others.
        without: Others that are left out: "SWA" is a part of the posterior, and no alternative to collecting one.
    """
    rivals = [each for each in comparisons if each.other not in without]
    return str(min(rivals, key=lambda each: each.difference.value)) if rivals else None
