"""What a card reads from a posterior's record beside its plain facts: who it is, and what a reader can ask it for."""

from __future__ import annotations

import hashlib
import json

from swag_trainer import SwagPosterior

_USUAL_RISK = 0.05


def identity(posterior: SwagPosterior) -> str:
    """Return 16 hexadecimal digits that change when the adapter or the posterior beside it does, its scale and tuning included.

    Metrics that were measured on one identity say nothing about another.
    """
    parts = [posterior.adapter.digest, posterior.digest, getattr(posterior, "rank", None)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def risk_to_show(posterior: SwagPosterior) -> float | None:
    """Return a share of wrong answers that a threshold was found for when the posterior was tuned: 0.05, or the nearest; else None."""
    thresholds = () if posterior.tuning is None else posterior.tuning.thresholds
    risks = [record.target for record in thresholds if record.goal == "risk" and record.threshold is not None]
    return min(risks, key=lambda risk: abs(risk - _USUAL_RISK), default=None)
