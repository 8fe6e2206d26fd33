"""Show what a posterior's file says: how it was collected, what it belongs to, how it was tuned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from swag_trainer.cli.options import CommonOptions
from swag_trainer.cli.tables import show, table_of
from swag_trainer.posterior.swag import SwagPosterior

_LONGEST = 8


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Which posterior."""

    model: str = field(metadata={"help": "a folder with a posterior, or a repository on the Hub"})
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit on the Hub"})
    json: bool = field(default=False, metadata={"help": "print everything as one JSON object"})


def run(options: Options, out: TextIO) -> None:
    """Print the facts.

    Raises:
        SwagError: No posterior there, or a damaged one.
    """
    posterior = SwagPosterior.from_pretrained(options.model, revision=options.revision)
    facts = facts_of(posterior)
    if options.json:
        out.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    else:
        show(table_of(f"Posterior in {options.model}", ("fact", "value"), _lines(facts)), out)


def facts_of(posterior: SwagPosterior) -> dict[str, Any]:
    """Return sizes and provenance as JSON values."""
    sizes = {
        "num_weights": posterior.layout.size,
        "num_tensors": len(posterior.layout.keys),
        "rank": posterior.rank,
        "norm_of_mean": float(posterior.gaussian.mean.norm()),
        "mean_standard_deviation": float(posterior.gaussian.variance.sqrt().mean()),
    }
    return sizes | posterior.record.as_document() | posterior.metadata()


def _lines(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """One line for each fact that there is; of a long list its beginning and its length."""
    lines: list[tuple[str, str]] = []
    for name, value in facts.items():
        words = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += _lines(value, f"{words}: ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines += [
                (words, ", ".join(f"{key} {_short(item)}" for key, item in entry.items() if item is not None))
                for entry in value
            ]
        elif isinstance(value, list) and value:
            shown = ", ".join(_short(item) for item in value[:_LONGEST])
            lines.append((words, shown if len(value) <= _LONGEST else f"{shown}, ... ({len(value)} in all)"))
        elif value is not None and value != []:
            lines.append((words, _short(value)))
    return lines


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
