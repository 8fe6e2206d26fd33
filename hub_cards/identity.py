"""Identity of a posterior in the marks of its card, and the risk that a card's example asks for."""

from __future__ import annotations

from swag_trainer import WeightPosterior
from swag_trainer.evaluation.identity import identity

__all__ = ["identity", "risk_to_show"]

_USUAL_RISK = 0.05


def risk_to_show(posterior: WeightPosterior) -> float | None:
    """Return a risk (fraction of wrong predictions) that tuning found a threshold for: 0.05, or the nearest; else None."""
    thresholds = () if posterior.tuning is None else posterior.tuning.thresholds
    risks = [record.target for record in thresholds if record.goal == "risk" and record.threshold is not None]
    return min(risks, key=lambda risk: abs(risk - _USUAL_RISK), default=None)
