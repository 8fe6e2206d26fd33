"""The file that ``evaluate`` writes and ``card`` reads: what was measured, complete, so that nothing is measured twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hub_cards import CardResults
from swag_trainer.errors import SwagError
from swag_trainer.metrics import ReliabilityBins, RiskCoverage

FORMAT = 1
_BINS = ("edges", "counts", "confidence", "accuracy")
_CURVE = ("coverage", "risk", "threshold")
_MOST_POINTS = 1000


@dataclass(frozen=True, eq=False)
class EvaluationFile:
    """One evaluation.

    The file is one JSON object:

        {
          "format": 1,
          "posterior": "0123456789abcdef",       identity of the posterior, as in the marks of its card
          "map_weights": "last" or "adapter",    whose weights "MAP" has: the last snapshot's, or those of the adapter's file
          "card": {...},                         the record of `hub_cards.CardResults`: ``CardResults.from_json(json.dumps(it))``;
                                                 metrics and intervals of every metric that all methods have
          "measurement": {...},                  `Measurement.as_json()`: every figure and interval, draws and times
          "reliability": {method: {"edges": [B + 1 borders], "counts": [B], "confidence": [B], "accuracy": [B]}},
                                                 null for the confidence and the accuracy of an empty bin
          "risk_coverage": {method: {"coverage": [...], "risk": [...], "threshold": [...]}},
                                                 at most 1000 points of the curve, the last one among them
          "uncertainty": {name: {"known": [N], "foreign": [M]}}
                                                 of SWAG, in nats, "entropy" and "mutual_information"; {} without foreign rows
        }

    Attributes:
        card: What a card prints.
        posterior: Identity of the posterior.
        map_weights: "last" or "adapter".
        measurement: As above.
        bins: Of each method.
        curves: Of each method.
        uncertainties: {name: (known (N,), foreign (M,))}.
    """

    card: CardResults
    posterior: str
    map_weights: str
    measurement: Mapping[str, Any]
    bins: Mapping[str, ReliabilityBins]
    curves: Mapping[str, RiskCoverage]
    uncertainties: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def to_json(self) -> str:
        """Return the text of the file."""
        document = {
            "format": FORMAT,
            "posterior": self.posterior,
            "map_weights": self.map_weights,
            "card": json.loads(self.card.to_json()),
            "measurement": self.measurement,
            "reliability": {name: {item: _listed(getattr(bins, item)) for item in _BINS} for name, bins in self.bins.items()},
            "risk_coverage": {
                name: {item: _listed(_thinned(getattr(curve, item))) for item in _CURVE} for name, curve in self.curves.items()
            },
            "uncertainty": {
                name: {"known": _listed(known), "foreign": _listed(foreign)}
                for name, (known, foreign) in self.uncertainties.items()
            },
        }
        return json.dumps(document, indent=1, allow_nan=False)

    @classmethod
    def read(cls, path: str | Path) -> EvaluationFile:
        """Read a file.

        Raises:
            SwagError: There is none, or it is not of this form.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise SwagError(
                    f"{str(path)!r} has format {document['format']!r}, this swag_trainer reads {FORMAT}. Evaluate again."
                )
            return cls(
                card=CardResults.from_json(json.dumps(document["card"])),
                posterior=str(document["posterior"]),
                map_weights=str(document["map_weights"]),
                measurement=dict(document["measurement"]),
                bins={
                    name: ReliabilityBins(**{item: _array(bins[item]) for item in _BINS})
                    for name, bins in document["reliability"].items()
                },
                curves={
                    name: RiskCoverage(**{item: _array(curve[item]) for item in _CURVE})
                    for name, curve in document["risk_coverage"].items()
                },
                uncertainties={
                    name: (_array(values["known"]), _array(values["foreign"]))
                    for name, values in document["uncertainty"].items()
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SwagError(
                f"{str(path)!r} is not what 'swag-trainer evaluate --output' writes: {type(error).__name__}: {str(error)[:200]}"
            ) from error


def _listed(values: np.ndarray) -> list[float | int | None]:
    return [None if value != value else value for value in np.asarray(values).tolist()]


def _array(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def _thinned(values: np.ndarray) -> np.ndarray:
    """At most a thousand of them, evenly, first and last included: no eye sees more on a plot."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).astype(int))]
