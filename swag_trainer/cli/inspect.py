"""Show the metadata of a posterior: its kind, what it belongs to, how it was made and tuned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from swag_trainer.cli.options import PosteriorOptions
from swag_trainer.cli.tables import show, table_of
from swag_trainer.posterior import load_posterior
from swag_trainer.posterior.base import WeightPosterior

_LONGEST = 8


@dataclass(frozen=True, kw_only=True)
class Options(PosteriorOptions):
    """Options of `swag-trainer inspect`."""

    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit on the Hub"})
    json: bool = field(default=False, metadata={"help": "print everything as one JSON object"})


def run(options: Options, out: TextIO) -> None:
    """Print the metadata.

    Raises:
        SwagError: No posterior there, or a damaged one.
    """
    posterior = load_posterior(
        options.model, revision=options.revision, ignore_mismatched_adapter=options.ignore_mismatched_adapter
    )
    metadata = metadata_of(posterior)
    if options.json:
        out.write(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
    else:
        show(table_of(f"Posterior in {options.model}", ("field", "value"), _lines(metadata)), out)


def metadata_of(posterior: WeightPosterior) -> dict[str, Any]:
    """Return kind, sizes and provenance as JSON values; rank and standard deviation are of the families that have them."""
    metadata: dict[str, Any] = {
        "kind": posterior.kind,
        "num_weights": posterior.layout.size,
        "num_tensors": len(posterior.layout.keys),
    }
    if (rank := getattr(posterior, "rank", None)) is not None:
        metadata["rank"] = rank
    metadata["norm_of_mean"] = float(posterior.mean_vector().norm())
    if (variance := getattr(posterior, "variance", None)) is not None:
        metadata["mean_standard_deviation"] = float(posterior.layout.flatten(variance).sqrt().mean())
    if (energy := posterior.relative_energy()) is not None:
        metadata["relative_energy"] = energy
    if (features := posterior.features) is not None:
        metadata["ood_score"] = {
            "class_means": len(features.means),
            "dimensions": features.means.shape[1],
            "held_out_examples": features.num_held_out,
            "cross_fitted": features.cross_fitted,
        }
    return metadata | posterior.record.as_document() | posterior.metadata()


def _lines(metadata: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a line for each field that has a value; of a long list its beginning and its length."""
    lines: list[tuple[str, str]] = []
    for name, value in metadata.items():
        title = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += _lines(value, f"{title}: ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines += [
                (title, ", ".join(f"{key} {_short(item)}" for key, item in entry.items() if item is not None))
                for entry in value
            ]
        elif isinstance(value, list) and value:
            shown = ", ".join(_short(item) for item in value[:_LONGEST])
            lines.append((title, shown if len(value) <= _LONGEST else f"{shown}, ... ({len(value)} in all)"))
        elif value is not None and value != []:
            lines.append((title, _short(value)))
    return lines


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
