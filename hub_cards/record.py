"""What a card reads from a posterior's record beside its plain facts: who it is, and how it was tuned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from swag_trainer import SwagPosterior


def identity(posterior: SwagPosterior) -> str:
    """Return 16 hexadecimal digits that change when the adapter, the scale or the tuning does.

    Figures that were measured on one identity say nothing about another.
    """
    facts = [posterior.adapter.digest, posterior.rank, posterior.scale, list(_tuning(posterior.provenance))]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def tuning_facts(record: Any) -> list[tuple[str, Any]]:
    """Return what tuning on held-out data left on record, as pairs of a name and a value; none where it was not tuned."""
    return [(name.replace("_", " "), value) for name, value in _tuning(record)]


def abstention_threshold(record: Any) -> float | None:
    """Return the probability below which a tuned posterior should rather not answer, where one is on record."""
    value = dict(_tuning(record)).get("abstain_below")
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1 else None


def _tuning(record: Any) -> Iterator[tuple[str, Any]]:
    # Posteriors of versions that did not tune have no such fact.
    tuning = getattr(record, "tuning", None)
    yield from _flat(asdict(tuning) if is_dataclass(tuning) and not isinstance(tuning, type) else tuning)


def _flat(facts: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(facts, Mapping):
        return
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, (str, int, float)) else str(value)
