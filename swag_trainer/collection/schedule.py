"""Collection schedules: at which optimizer steps weights are collected."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """A rule that decides for each step whether weights are collected."""

    def is_due(self, *, step: int, max_steps: int, steps_per_epoch: float | None = None) -> bool:
        """Is the weight vector after optimizer step ``step`` (1 to ``max_steps``) to be collected?"""
        ...


@dataclass(frozen=True)
class Every:
    """Collect at regular distances in the last part of the run.

    Examples:
        >>> Every(steps=10, start=0.5).is_due(step=50, max_steps=100)
        True
        >>> Every(steps=10, start=0.5).is_due(step=49, max_steps=100)
        False
        >>> Every(epochs=1, start=0.75).is_due(step=80, max_steps=100, steps_per_epoch=20)
        True

    Attributes:
        steps: Distance in optimizer steps; give this or ``epochs``.
        epochs: Distance in epochs, fractions allowed.
        start: The part of the run to let pass first, in [0, 1).
    """

    steps: int | None = None
    epochs: float | None = None
    start: float = 0.3

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"Every needs either steps=... or epochs=..., got steps={self.steps} and epochs={self.epochs}.")
        distance = self.steps if self.epochs is None else self.epochs
        if not distance > 0 or (self.steps is not None and int(self.steps) != self.steps):
            raise ValueError(f"The distance between two collections must be positive (and whole, in steps), got {self}.")
        _check_start(self)

    def is_due(self, *, step: int, max_steps: int, steps_per_epoch: float | None = None) -> bool:
        """See `Schedule.is_due`.

        Raises:
            ValueError: The distance is given in epochs and the length of an epoch is unknown.
        """
        if step < self.start * max_steps or step < 1:
            return False
        if self.steps is not None:
            return step % self.steps == 0
        if steps_per_epoch is None:
            raise ValueError(f"{self} needs the length of an epoch, which this data set does not have. Use Every(steps=...).")
        distance = self.epochs * steps_per_epoch
        return step // distance > (step - 1) // distance


@dataclass(frozen=True)
class Evenly:
    """Spread a number of collections evenly over the last part of the run, however long it is; the last step is one of them.

    Examples:
        >>> [step for step in range(1, 101) if Evenly(snapshots=3, start=0.5).is_due(step=step, max_steps=100)]
        [50, 75, 100]

    Attributes:
        snapshots: How many, at least 2. A part of the run with fewer steps than that is collected at each of them.
        start: The part of the run to let pass first, in [0, 1).
    """

    snapshots: int = 30
    start: float = 0.3

    def __post_init__(self) -> None:
        if self.snapshots < 2:
            raise ValueError(f"Evenly(snapshots=...) must be at least 2, got {self.snapshots}.")
        _check_start(self)

    def is_due(self, *, step: int, max_steps: int, steps_per_epoch: float | None = None) -> bool:
        """See `Schedule.is_due`."""
        first = max(1, round(self.start * max_steps))
        if not first <= step <= max_steps:
            return False
        gaps = self.snapshots - 1
        # The snapshot i lies at the last step not after first + i * (max_steps - first) / gaps; whole numbers, so no rounding.
        length = max(max_steps - first, 1)
        return step == first or (step - first) * gaps // length > (step - 1 - first) * gaps // length


def collection_steps(schedule: Schedule, *, max_steps: int, steps_per_epoch: float | None) -> list[int]:
    """Return every step of a run at which the schedule collects."""
    return [
        step
        for step in range(1, max_steps + 1)
        if schedule.is_due(step=step, max_steps=max_steps, steps_per_epoch=steps_per_epoch)
    ]


def describe(schedule: Schedule) -> str:
    """Return how a schedule prints; the name of its class where it would print its address in memory."""
    kind = type(schedule)
    says_nothing = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    return kind.__qualname__ if says_nothing else str(schedule)


def steps_digest(steps: Sequence[int]) -> str:
    """Return a SHA-256 over the steps at which a schedule collects: what it does, whatever its class is called."""
    return hashlib.sha256(",".join(map(str, steps)).encode()).hexdigest()


def _check_start(schedule: Every | Evenly) -> None:
    if not 0.0 <= schedule.start < 1.0:
        raise ValueError(
            f"{type(schedule).__name__}(start=...) is a fraction of the run in [0, 1), got {schedule.start}. "
            "To start at a given step, divide it by max_steps."
        )
