"""Metadata of the snapshots: step, learning rate and length of the deviation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Snapshots:
    """Metadata of the vectors that were collected, one entry for each."""

    steps: list[int] = field(default_factory=list)
    learning_rates: list[float | None] = field(default_factory=list)
    deviation_norms: list[float] = field(default_factory=list)

    def add(self, step: int, learning_rate: float | None, deviation_norm: float) -> None:
        """Add one more."""
        self.steps.append(step)
        self.learning_rates.append(learning_rate)
        self.deviation_norms.append(deviation_norm)

    def as_rows(self) -> list[list[Any]]:
        """Return them as JSON values."""
        return [list(row) for row in zip(self.steps, self.learning_rates, self.deviation_norms, strict=True)]

    @classmethod
    def of_rows(cls, rows: list[list[Any]]) -> Snapshots:
        """Undo `as_rows`."""
        snapshots = cls()
        for step, rate, norm in rows:
            snapshots.add(int(step), rate if rate is None else float(rate), float(norm))
        return snapshots
