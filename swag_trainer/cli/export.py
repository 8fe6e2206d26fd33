"""Write the draws of a posterior as LoRA adapters for vLLM, TGI, LoRAX or plain PEFT, and an index that says how to average them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TextIO

from swag_trainer.adapters.export import export_adapters
from swag_trainer.cli.files import prepared_outputs
from swag_trainer.cli.options import PosteriorOptions
from swag_trainer.posterior import load_posterior


@dataclass(frozen=True, kw_only=True)
class Options(PosteriorOptions):
    """As `swag_trainer.export_adapters`."""

    counts: ClassVar[tuple[str, ...]] = ("num_samples",)

    output: str = field(metadata={"help": "folder for the adapters, one without exported adapters"})
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit on the Hub"})
    num_samples: int | None = field(
        default=None, metadata={"help": "number of draws, each an adapter; default: that of the tuning, or 8"}
    )
    seed: int | None = field(default=None, metadata={"help": "of the draws; default: that of the tuning, or 0"})
    scale: float | None = field(default=None, metadata={"help": "factor of the covariance; default: the posterior's own"})
    with_heads: bool = field(
        default=False, metadata={"help": "export a head that was trained whole too, which few servers can load"}
    )


def run(options: Options, out: TextIO) -> None:
    """Export, and print the command that serves the adapters with vLLM.

    Raises:
        SwagError: No posterior there, or one that cannot be exported.
    """
    folder = Path(options.output)
    with prepared_outputs(posteriors=[folder], overwrite=False):
        posterior = load_posterior(
            options.model, revision=options.revision, ignore_mismatched_adapter=options.ignore_mismatched_adapter
        )
        settings = {"num_samples": options.num_samples, "seed": options.seed, "scale": options.scale}
        index = export_adapters(posterior, folder, with_heads=options.with_heads, **settings)
    names = [*([] if index.mean is None else [index.mean]), *index.draws]
    out.write(f"{folder}: {len(index.draws)} draws of {posterior.title}{'' if index.mean is None else ', and their mean'}\n")
    adapters = [f"{name}={folder / name}" for name in names]
    command = ["vllm", "serve", str(index.base_model), "--enable-lora", "--max-loras", str(len(names))]
    out.write(f"{shlex.join([*command, '--max-lora-rank', str(index.rank), '--lora-modules', *adapters])}\n")
