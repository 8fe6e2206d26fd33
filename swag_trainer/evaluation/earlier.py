"""Results files of format 1, which earlier versions wrote, as documents of the present format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLD_CARD_KEYS = {"foreign": "ood", "num_foreign": "num_ood", "seconds_per_row": "seconds_per_example"}
_OLD_METRICS = {"ece_mass": "ece_quantile"}


def renamed(document: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a document with its old keys replaced by the new ones."""
    return {names.get(key, key): value for key, value in document.items()}


def from_format_1(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of format 2 that holds what one of format 1 does.

    Raises:
        KeyError, TypeError, AttributeError: It has another form.
    """
    card, measured = renamed(document["card"], OLD_CARD_KEYS), document["measurement"]
    same = {name: card[name] for name in ("dataset", "split", "revision", "num_examples", "ood", "versions")}
    return same | {
        "num_ood": card["num_ood"] or 0,
        "posterior": document["posterior"],
        "sampling": {name: card[name] for name in ("num_samples", "seed", "scale", "temperature")},
        "map_weights": document["map_weights"],
        "num_bins": measured["num_bins"],
        "num_resamples": measured["num_resamples"],
        "level": measured["level"],
        "seed": measured["seed"],
        "methods": {
            name: {
                "num_draws": method["num_draws"],
                "seconds_per_example": method["seconds_per_row"],
                "metrics": renamed(method["figures"], _OLD_METRICS),
                "reliability": document["reliability"][name],
                "risk_coverage": document["risk_coverage"][name],
            }
            for name, method in measured["methods"].items()
        },
        "uncertainties": {
            name: {"in_distribution": values["known"], "ood": values["foreign"]}
            for name, values in document["uncertainty"].items()
        },
    }
