"""Record of how a posterior was fitted to an adapter, after its training or in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class FitRecord:
    """How a posterior was fitted to an adapter.

    Attributes:
        method: Name of the method, such as "tfb" or "ivon".
        dataset, split, revision: Of the examples that it was fitted to.
        num_examples: How many they were.
        settings: Further numbers of the method, by name.
    """

    method: str
    dataset: str | None = None
    split: str | None = None
    revision: str | None = None
    num_examples: int = 0
    settings: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return everything by name, for a model card."""
        return {name: value for name, value in asdict(self).items() if name != "settings"} | self.settings
