"""Make a posterior of the saved checkpoints of a training run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, TextIO

from swag_trainer.cli.adapter_head import classes_of_head
from swag_trainer.cli.files import prepared_outputs
from swag_trainer.cli.options import CommonOptions
from swag_trainer.collection.from_checkpoints import posterior_from_checkpoints
from swag_trainer.errors import SwagError
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.tasks.sequence_classification import SequenceClassification

_NUMBERED = re.compile(r"checkpoint-([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """As `swag_trainer.posterior_from_checkpoints`."""

    positionals: ClassVar[tuple[str, ...]] = ("checkpoints",)
    sources: ClassVar[tuple[str, ...]] = ("checkpoints", "tokenizer")

    checkpoints: list[str] = field(
        metadata={
            "help": "a folder that holds folders checkpoint-N, several folders in turn, or, with --revisions, a repository"
        }
    )
    output: str = field(metadata={"help": "folder for adapter, posterior and, where the last checkpoint has one, tokenizer"})
    revisions: list[str] | None = field(default=None, metadata={"help": "commits of the repository, oldest first"})
    labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "names of the classes in the order of the logits; default: those in the base model's config, where they fit"
        },
    )
    rank: int = field(default=20, metadata={"help": "deviations to keep; 0 for a diagonal covariance"})
    final_weights: Literal["mean", "trained"] = field(default="mean", metadata={"help": "weights in the adapter's file"})
    tokenizer: str | None = field(
        default=None, metadata={"help": "folder or repository of the tokenizer; default: the last checkpoint that has one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace a posterior that is in the folder already"})


def run(options: Options, out: TextIO) -> None:
    """Collect and save.

    Raises:
        SwagError: The checkpoints cannot be used, or the folder has a posterior already.
    """
    with prepared_outputs(posteriors=[options.output], overwrite=options.overwrite):
        _collect(options, Path(options.output), out)


def _collect(options: Options, folder: Path, out: TextIO) -> None:
    checkpoints = options.checkpoints
    source = options.tokenizer or last_with_tokenizer(checkpoints)
    tokenizer = None
    if source is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    posterior = posterior_from_checkpoints(
        checkpoints[0] if len(checkpoints) == 1 else checkpoints,
        rank=options.rank,
        revisions=options.revisions,
        final_weights=options.final_weights,
        labels=options.labels,
        pad_token_id=None if tokenizer is None else tokenizer.pad_token_id,
    )
    posterior = replace(posterior, record=replace(posterior.record, labels=_labels(options.labels, posterior)))
    posterior.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    out.write(
        f"{folder}: {posterior.num_collected} snapshots of {posterior.layout.size} weights, "
        f"{'tokenizer of ' + source if source else 'no tokenizer: that of the base model is used'}\n"
    )


def _labels(given: list[str] | None, posterior: SwagPosterior) -> list[str] | None:
    """Return the names of the classes: those that were given, else those of the base model's config.

    Raises:
        SwagError: There are as many names as the head has classes neither here nor there. Nothing could predict without them: the files of
            an adapter do not say how many classes it has.
    """
    base_model = posterior.adapter.base_model
    if posterior.record.task != SequenceClassification.name or not base_model:
        return given
    try:
        size, own = classes_of_head(posterior.adapter, base_model)
    except (OSError, ValueError) as error:
        if given:
            return given
        raise SwagError(
            f"The base model {base_model!r} cannot be asked for the names of the classes: {str(error)[:200]} Name them in the order of the "
            "logits: --labels NAME NAME ..."
        ) from error
    if given is None and size == len(own):
        return own
    if given is None or len(given) != size or len(set(given)) != size:
        names = f"--labels gives {len(given)}" if given else f"the config of {base_model!r} has {len(own)}"
        raise SwagError(
            f"The adapter's head has {size} classes, and {names}. Name each class once, in the order of the logits: --labels NAME NAME ... "
            "(in the order that the training had them in: sorted by name with swag-trainer train)."
        )
    return given


def last_with_tokenizer(checkpoints: list[str]) -> str | None:
    """Return the last folder that has a tokenizer: of those named checkpoint-N that with the highest N, else the last that was given."""
    candidates = [path for given in checkpoints for path in [Path(given), *Path(given).glob("checkpoint-*")]]
    found = [path for path in candidates if (path / "tokenizer_config.json").is_file()]
    return str(sorted(found, key=_number)[-1]) if found else None


def _number(path: Path) -> int:
    numbered = _NUMBERED.fullmatch(path.name)
    return int(numbered[1]) if numbered else -1
