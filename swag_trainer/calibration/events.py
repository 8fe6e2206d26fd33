"""Events that a tuning chooses by: one for each example, its tokens, or where several labels may be right, one for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swag_trainer.calibration.cross_fitting import folds_of
from swag_trainer.errors import SwagError
from swag_trainer.metrics.scores import log_probabilities


@dataclass(frozen=True, eq=False)
class CalibrationEvents:
    """True outcomes of held-out examples.

    The labels of an example that may have several are C events of two classes, "no" and "yes". Their likelihoods are multiplied as if
    they were independent given the model, as its own loss does; the folds keep an example's events together.

    Attributes:
        labels: Class numbers, shape (N,); or which labels each example has, 0 or 1, shape (N, C).
        num_events: How many class numbers each example has, one example after the other, as a text has one for each token; None where it
            has one. Shape (examples,).
    """

    labels: np.ndarray
    num_events: np.ndarray | None = None

    @property
    def exclusive(self) -> bool:
        """Whether every example has one label."""
        return self.labels.ndim == 1

    @property
    def one_each(self) -> bool:
        """Whether every example has one label, and is one event: what thresholds and sets of single classes are promised for."""
        return self.exclusive and (self.num_events is None or bool(np.all(self.num_events == 1)))

    @property
    def true(self) -> np.ndarray:
        """The class of each event. Shape (E,)."""
        return self.labels.reshape(-1)

    def logits(self, draws: np.ndarray) -> np.ndarray:
        """Return logits of the events, up to a constant, from each draw's probabilities.

        Args:
            draws: Shape (S, N, C).

        Returns:
            Shape (S, E, C) for one label each, (S, E, 2) for several.
        """
        if self.exclusive:
            return log_probabilities(draws)
        flat = draws.reshape(len(draws), -1)
        return log_probabilities(np.stack([1 - flat, flat], axis=-1))

    def folds(self, *, seed: int) -> list[np.ndarray]:
        """Return the numbers of the events in each fold; every example is in one fold."""
        if self.one_each:
            return folds_of(len(self.labels), seed=seed)
        counts = self.num_events if self.exclusive else np.full(len(self.labels), self.labels.shape[1])
        return folds_of(len(counts), seed=seed, num_events=counts)

    def by_example(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the probabilities of each example's labels, shape (N, C), from those of the events."""
        return probabilities if self.exclusive else probabilities[:, 1].reshape(self.labels.shape)


def events_of_examples(num_events: np.ndarray, groups: Sequence[int] | None) -> np.ndarray:
    """Return how many events each example has, from those of each row. Shape (examples,), int64.

    Raises:
        SwagError: Not a group for each row, or rows of one example that do not follow each other.
    """
    if groups is None:
        return num_events
    numbers = np.asarray(groups)
    if numbers.shape != num_events.shape:
        raise SwagError(f"groups has the shape {numbers.shape}; a number for each of the {len(num_events)} rows is needed.")
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    if len(np.unique(numbers)) != len(starts):
        raise SwagError("The rows of an example must follow each other, and a number in groups comes back after another one.")
    return np.add.reduceat(num_events, starts)
