"""Paired comparison of methods on the same examples: differences of NLL and AUROC with intervals, and a verdict in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from swag_trainer.errors import SwagError
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics.bootstrap import Interval, bootstrap_interval
from swag_trainer.metrics.checks import checked
from swag_trainer.metrics.ood import auroc, uncertainty_scores
from swag_trainer.metrics.scores import log_losses

MIN_EXAMPLES = 20  # fewer have intervals by bootstrap that are too narrow
NLL, OOD_DETECTION = "nll", "auroc_entropy"
MEANS = ("SWA", "MultiSWA")


@dataclass(frozen=True)
class Comparison:
    """How much better one method is than another on the same examples.

    Attributes:
        method: Name of the one.
        other: Name of the other.
        difference: Above 0 where ``method`` is better: NLL of ``other`` minus NLL of ``method``, in nats for each example, or AUROC of
            ``method`` minus AUROC of ``other``.
        num_examples: N.
        metric: "nll", the negative log-likelihood, or "auroc_entropy", the AUROC of detecting out-of-distribution (OOD) examples by the
            entropy.
        num_ood: M, how many OOD examples there are; 0 for "nll".

    Raises:
        ValueError: Another metric.
    """

    method: str
    other: str
    difference: Interval
    num_examples: int
    metric: str = NLL
    num_ood: int = 0

    def __post_init__(self) -> None:
        if self.metric not in (NLL, OOD_DETECTION):
            raise ValueError(f"Comparison(metric=...) is {NLL!r} or {OOD_DETECTION!r}, got {str(self.metric)[:50]!r}.")

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
        return self.sentence()

    def sentence(self, spelt: Callable[[str], str] = str) -> str:
        """Return the comparison as one sentence, the names of the methods as ``spelt`` returns them."""
        method, other = (spelt(name.replace(", ", " + ")) for name in (self.method, self.other))
        is_ahead = self.difference.value >= 0
        value, low, high = self.difference.value, self.difference.low, self.difference.high
        if not is_ahead:
            value, low, high = -value, -high, -low
        amount = f"{value:.3f}{' nats' * (self.metric == NLL)} [{low:.3f}, {high:.3f}]"
        adverb = "better" if self.is_better else "worse" if self.is_worse else None
        if self.metric == NLL:
            where = f"on {self.num_examples} examples"
            if adverb:
                return f"{method} is {adverb} than {other} by {amount} {where}."
            lower = "lower" if is_ahead else "higher"
            return f"{method} and {other} cannot be told apart {where}: the NLL of {method} is {lower} by {amount}."
        measured = (
            f"the AUROC of its entropy is {'higher' if is_ahead else 'lower'} by {amount} on {self.num_examples} in-distribution and "
            f"{self.num_ood} OOD examples"
        )
        if adverb:
            return f"{method} detects out-of-distribution (OOD) examples {adverb} than {other}: {measured}."
        return f"{method} and {other} cannot be told apart at detecting out-of-distribution (OOD) examples: for {method} {measured}."


def compare(
    methods: Mapping[str, MethodPredictions],
    labels: ArrayLike,
    *,
    method: str,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
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
        clusters: As in `bootstrap_interval`.

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
    num_examples = len(own) if clusters is None else len(np.unique(clusters))
    if num_examples < MIN_EXAMPLES:
        return []
    options: dict[str, Any] = {"level": level, "num_resamples": num_resamples, "seed": seed, "clusters": clusters}
    return [
        Comparison(method, other, bootstrap_interval(np.mean, losses[other] - own, **options), num_examples)
        for other in sorted(losses, key=lambda name: losses[name].mean())
    ]


def compare_ood_detection(
    methods: Mapping[str, MethodPredictions],
    *,
    method: str,
    other: str = "MAP",
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare how well two methods detect OOD examples by the entropy, by paired bootstrap of the AUROC.

    Args:
        methods: Predictions of each method, by its name.
        method: One of them.
        other: What it is compared with.
        level, num_resamples, seed: As in `compare`. In-distribution and OOD examples are resampled each among themselves.

    Returns:
        The comparison; nothing where one of the two is not among the methods or has no OOD examples, where both are the same, or where
        there are fewer than 20 examples of either kind.
    """
    pair = [methods[name] for name in (method, other) if name in methods and methods[name].ood_probabilities is not None]
    if method == other or len(pair) < 2:
        return []
    num_examples, num_ood = len(pair[0].probabilities), len(pair[0].ood_probabilities)
    if min(num_examples, num_ood) < MIN_EXAMPLES:
        return []
    own, theirs = (
        np.concatenate([uncertainty_scores(part)["entropy"] for part in (each.probabilities, each.ood_probabilities)])
        for each in pair
    )
    is_ood = np.repeat([False, True], [num_examples, num_ood])

    def gain(own: np.ndarray, theirs: np.ndarray, is_ood: np.ndarray) -> float:
        return auroc(own[~is_ood], own[is_ood]) - auroc(theirs[~is_ood], theirs[is_ood])

    difference = bootstrap_interval(
        gain, own, theirs, is_ood, level=level, num_resamples=num_resamples, seed=seed, strata=is_ood
    )
    return [Comparison(method, other, difference, num_examples, OOD_DETECTION, num_ood)]


def strongest(comparisons: Sequence[Comparison], *, without: Sequence[str] = MEANS) -> Comparison | None:
    """Return the comparison of the NLL with the strongest other method; None where there is none.

    Args:
        comparisons: Of one method with others.
        without: Others that are left out: "SWA" and "MultiSWA" are parts of the posterior, and no alternative to collecting one.
    """
    rivals = [each for each in comparisons if each.metric == NLL and each.other not in without]
    return min(rivals, key=lambda each: each.difference.value) if rivals else None


def verdict(comparisons: Sequence[Comparison], *, without: Sequence[str] = MEANS) -> str | None:
    """Return the comparison that `strongest` finds as one sentence; None where there is none."""
    found = strongest(comparisons, without=without)
    return None if found is None else str(found)


def ood_verdict(comparisons: Sequence[Comparison]) -> str | None:
    """Return how well OOD examples are detected, compared with the plain model, as one sentence; None where it was not measured."""
    return next((str(each) for each in comparisons if each.metric == OOD_DETECTION), None)
