"""Make one posterior of several: a mixture, such as MultiSWAG of runs with other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TextIO

from swag_trainer.cli.collect import last_with_tokenizer
from swag_trainer.cli.files import prepared_outputs
from swag_trainer.cli.options import CommonOptions
from swag_trainer.posterior.mixture import PosteriorMixture
from swag_trainer.prediction.tokenizers import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """As `swag_trainer.PosteriorMixture.from_pretrained`."""

    positionals: ClassVar[tuple[str, ...]] = ("members",)
    sources: ClassVar[tuple[str, ...]] = ("members",)

    members: list[str] = field(metadata={"help": "two or more folders or repositories with posteriors of the same adapter"})
    output: str = field(metadata={"help": "folder for the mixture and, where a member's folder has one, the tokenizer"})
    weights: list[float] | None = field(default=None, metadata={"help": "what each member counts; default: all the same"})
    overwrite: bool = field(default=False, metadata={"help": "replace a posterior that is in the folder already"})


def run(options: Options, out: TextIO) -> None:
    """Mix and save.

    Raises:
        SwagError: The members do not go together, or the folder has a posterior already.
    """
    with prepared_outputs(posteriors=[options.output], overwrite=options.overwrite):
        mix_into(Path(options.output), options.members, out, weights=options.weights)


def mix_into(folder: Path, members: Sequence[str], out: TextIO, *, weights: Sequence[float] | None = None) -> None:
    """Save a mixture of posteriors, and where a member's folder has one the tokenizer; print what it is.

    Raises:
        SwagError: The members do not go together.
    """
    mixture = PosteriorMixture.from_pretrained(members, weights="uniform" if weights is None else weights)
    mixture.save_pretrained(folder)
    source = last_with_tokenizer(members)
    if source is not None:
        load_tokenizer(source).save_pretrained(folder)
    counts = ", ".join(f"{weight:.3g}" for weight in mixture.member_weights)
    out.write(f"{folder}: {mixture.title} of {len(mixture.members)} members with the weights {counts}\n")
