"""Make a posterior of the checkpoints of a run that is over, without training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TextIO

from swag_trainer.cli.files import refuse_posterior
from swag_trainer.cli.options import CommonOptions
from swag_trainer.collection.from_checkpoints import posterior_from_checkpoints


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """As `SwagPosterior.from_checkpoints`."""

    positionals: ClassVar[tuple[str, ...]] = ("checkpoints",)

    checkpoints: list[str] = field(
        metadata={
            "help": "a folder that holds folders checkpoint-N, several folders in turn, or, with --revisions, a repository"
        }
    )
    output: str = field(metadata={"help": "folder for adapter, posterior and, where the last checkpoint has one, tokenizer"})
    revisions: list[str] | None = field(default=None, metadata={"help": "commits of the repository, oldest first"})
    labels: list[str] | None = field(default=None, metadata={"help": "names of the classes in the order of the logits"})
    rank: int = field(default=20, metadata={"help": "deviations to keep; 0 for a diagonal covariance"})
    final_weights: Literal["mean", "trained"] = field(default="mean", metadata={"help": "what the adapter's file shall hold"})
    tokenizer: str | None = field(default=None, metadata={"help": "where the tokenizer is; the last checkpoint by itself"})
    overwrite: bool = field(default=False, metadata={"help": "replace a posterior that is in the folder already"})


def run(options: Options, out: TextIO) -> None:
    """Collect and save.

    Raises:
        SwagError: The checkpoints cannot be used, or the folder has a posterior already.
    """
    folder = Path(options.output)
    refuse_posterior(folder, overwrite=options.overwrite)
    checkpoints = options.checkpoints
    source = options.tokenizer or _last_with_tokenizer(checkpoints)
    tokenizer = None
    if source is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source)
    posterior = posterior_from_checkpoints(
        checkpoints[0] if len(checkpoints) == 1 else checkpoints,
        rank=options.rank,
        revisions=options.revisions,
        final_weights=options.final_weights,
        labels=options.labels,
        pad_token_id=None if tokenizer is None else tokenizer.pad_token_id,
    )
    posterior.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    out.write(
        f"{folder}: {posterior.num_collected} snapshots of {posterior.layout.size} weights, "
        f"{'tokenizer of ' + source if source else 'no tokenizer: the base model says which one'}\n"
    )


def _last_with_tokenizer(checkpoints: list[str]) -> str | None:
    """The checkpoint whose training was longest, if it says how texts become numbers."""
    found = [path for given in checkpoints for path in [Path(given), *Path(given).glob("checkpoint-*")]]
    found = [path for path in found if (path / "tokenizer_config.json").is_file()]
    numbered = sorted(found, key=lambda path: int(path.name.rpartition("-")[2]) if path.name[-1:].isdigit() else -1)
    return str(numbered[-1]) if numbered else None
