"""Identity of a posterior: which one was measured, and which one a card describes."""

from __future__ import annotations

import hashlib
import json

from swag_trainer.posterior.base import WeightPosterior


def identity(posterior: WeightPosterior) -> str:
    """Return 16 hexadecimal digits that change with the posterior, its adapter, its scale and its tuning.

    Metrics that were measured with one identity do not hold for another.
    """
    parts = [posterior.digest, posterior.adapter.digest, posterior.summary()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
