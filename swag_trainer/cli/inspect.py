"""Show the metadata of a posterior: its kind, what it belongs to, how it was made and tuned; and the memory that predictions need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TextIO

from swag_trainer.cli.options import PosteriorOptions
from swag_trainer.cli.tables import show, table_of
from swag_trainer.posterior import load_posterior
from swag_trainer.posterior.base import WeightPosterior

_LONGEST = 8
_SIZES = {"base", "adapter", "posterior", "draws", "activations", "caches", "total"}


@dataclass(frozen=True, kw_only=True)
class Options(PosteriorOptions):
    """Options of `swag-trainer inspect`."""

    counts: ClassVar[tuple[str, ...]] = ("num_samples", "batch_size", "length")
    sources: ClassVar[tuple[str, ...]] = ("base_model",)

    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit on the Hub"})
    json: bool = field(default=False, metadata={"help": "print everything as one JSON object"})
    memory: bool = field(
        default=False, metadata={"help": "calculate the memory that predictions need, of the base's config.json alone"}
    )
    num_samples: int = field(default=10, metadata={"help": "number of draws, for --memory, as are the options below"})
    batch_size: int = field(default=32, metadata={"help": "texts per forward"})
    length: int = field(default=512, metadata={"help": "tokens of a text"})
    dtype: str | None = field(
        default=None,
        metadata={"help": "of the base model; default: its own", "choices": ["float32", "bfloat16", "float16"]},
    )
    bits: int | None = field(default=None, metadata={"help": "4 or 8 for a base that is quantised while it is loaded"})
    device: str = field(
        default="cpu",
        metadata={"help": "on a GPU as many draws share a forward as there is room for", "choices": ["cpu", "gpu"]},
    )
    base_model: str | None = field(
        default=None,
        metadata={"help": "folder or Hub name of the base model, where it lies elsewhere than adapter_config.json says"},
    )


def run(options: Options, out: TextIO) -> None:
    """Print the metadata.

    Raises:
        SwagError: No posterior there, or a damaged one; or the memory cannot be calculated.
    """
    posterior = load_posterior(
        options.model, revision=options.revision, ignore_mismatched_adapter=options.ignore_mismatched_adapter
    )
    metadata = metadata_of(posterior)
    memory = _memory(posterior, options) if options.memory else {}
    if options.json:
        document = metadata | ({"memory": memory} if memory else {})
        out.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return
    show(table_of(f"Posterior in {options.model}", ("field", "value"), _lines(metadata)), out)
    if memory:
        asked = f"{options.num_samples} draws of {options.batch_size} texts with {options.length} tokens"
        sizes = [(name.replace("_", " "), _size(value) if name in _SIZES else f"{value:,}") for name, value in memory.items()]
        show(table_of("Memory by calculation", ("part", "size"), [("for", asked), *sizes]), out)


def _memory(posterior: WeightPosterior, options: Options) -> dict[str, int]:
    import torch

    from swag_trainer.prediction.memory import estimate_memory
    from swag_trainer.prediction.packed.chunks import CPU_TOKENS

    return estimate_memory(
        posterior,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
        length=options.length,
        max_tokens=CPU_TOKENS if options.device == "cpu" else None,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        bits=options.bits,
        base_model=options.base_model,
        name=options.model,
    ).as_document()


def _size(value: int) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


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
        vector = posterior.layout.flatten(variance) if isinstance(variance, Mapping) else variance
        metadata["mean_standard_deviation"] = float(vector.float().sqrt().mean())
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
    """Return a line for each field that has a value; of a long list its beginning and its length, of a member of a mixture its numbers."""
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
            lines.append((title, _beginning(value)))
        elif value is not None and value != []:
            lines.append((title, _short(value)))
    return lines


def _beginning(values: list[Any]) -> str:
    shown = ", ".join(map(_short, values[:_LONGEST]))
    return shown if len(values) <= _LONGEST else f"{shown}, ... ({len(values)} in all)"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{_beginning(value)}]"
    if isinstance(value, Mapping):
        single = {key: item for key, item in value.items() if item is not None and not isinstance(item, (list, Mapping))}
        return ", ".join(f"{key.replace('_', ' ')} {_short(item)}" for key, item in single.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
