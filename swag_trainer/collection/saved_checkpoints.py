"""Saved adapters of one training run: where they lie, what is known of each, and whether they belong together."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from swag_trainer.collection.file_integrity import MAX_STATE_BYTES
from swag_trainer.errors import (
    AdapterMismatchError,
    PosteriorFormatError,
    PosteriorNotFoundError,
    SwagError,
    TooFewCollectionsError,
    shortened,
)
from swag_trainer.hub import download
from swag_trainer.posterior.adapter_settings import ADAPTER_CONFIG, differing_setting
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.regular_file import parse_json, read_bytes
from swag_trainer.posterior.saved_adapter import ADAPTER_WEIGHTS, SavedAdapter
from swag_trainer.posterior.storage import content_digest
from swag_trainer.posterior.tensor_file import check_finite

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"checkpoint-([0-9]+)")


@dataclass(frozen=True)
class SavedCheckpoint:
    """One saved adapter and what is known about when it was saved.

    Attributes:
        name: What errors call it.
        folder: Where the adapter's two files lie.
        step: Optimizer step, where that is known.
        learning_rate: The rate that this step was taken with, where that is known.
    """

    name: str
    folder: Path
    step: int | None = None
    learning_rate: float | None = None

    def read(self) -> SavedAdapter:
        """Read the adapter.

        Raises:
            PosteriorNotFoundError: There is none.
            PosteriorFormatError: It is damaged, or float32 cannot hold one of its values.
        """
        try:
            adapter = SavedAdapter.read(self.folder)
            for key, tensor in adapter.tensors.items():
                check_finite({key: tensor.float()}, self.folder / ADAPTER_WEIGHTS)
            return adapter
        except (PosteriorFormatError, PosteriorNotFoundError) as error:
            named = sorted(path.parent.name for path in self.folder.glob(f"*/{ADAPTER_CONFIG}"))
            hint = (
                f"It has the adapters {named}: name one with adapter_name=..." if named else "Leave it out, or save it again."
            )
            raise type(error)(f"{self.name} cannot be part of a posterior. {error} {hint}") from error


@dataclass(frozen=True)
class AdapterSummary:
    """What is known of an adapter without its numbers: settings, layout, dtypes and a digest of each tensor."""

    config: Mapping[str, Any]
    layout: WeightLayout
    dtypes: tuple[torch.dtype, ...]
    digests: tuple[str, ...]

    @classmethod
    def at(cls, adapter: SavedAdapter) -> AdapterSummary:
        """Return the summary of an adapter, with a digest of each of its tensors."""
        layout = WeightLayout.of(adapter.tensors)
        tensors = [adapter.tensors[key] for key in layout.keys]
        digests = tuple(content_digest({"": tensor}) for tensor in tensors)
        return cls(adapter.config, layout, tuple(tensor.dtype for tensor in tensors), digests)


def numbered_folders(folder: Path) -> list[Path]:
    """Return the folders called checkpoint-N in a folder, by their numbers.

    Raises:
        PosteriorNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise PosteriorNotFoundError(
            f"There is no folder {str(folder)!r}. For a repository on the Hub say which of its commits hold the adapter, oldest "
            "first: revisions=[...]."
        )
    numbers = {path: _NUMBERED.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()}
    return sorted((path for path in numbers if numbers[path]), key=lambda path: int(numbers[path][1]))


def checkpoint_in_folder(folder: Path, inside: str) -> SavedCheckpoint:
    """Return the adapter saved in a folder, with step and learning rate from the Trainer's record where there is one.

    Args:
        folder: Of the checkpoint.
        inside: Subfolder that the adapter lies in, "" for none.

    Raises:
        PosteriorNotFoundError: There is no such folder.
        PosteriorFormatError: The Trainer's record is not valid JSON.
    """
    if not folder.is_dir():
        raise PosteriorNotFoundError(f"There is no folder {str(folder)!r}; folders that hold saved adapters were expected.")
    name, path, number = repr(str(folder)), folder / "trainer_state.json", _NUMBERED.fullmatch(folder.name)
    step = int(number[1]) if number else None
    try:
        state = parse_json(read_bytes(path, max_bytes=MAX_STATE_BYTES), finite=False)
    except PosteriorNotFoundError:
        return SavedCheckpoint(name, folder / inside, step)
    except ValueError as error:
        raise PosteriorFormatError(
            f"{name} cannot be part of a posterior. {str(path)!r} is not valid JSON: {error}."
        ) from error
    # It may come from any run: only what has the right type is taken from it.
    state = state if isinstance(state, dict) else {}
    step = state["global_step"] if type(state.get("global_step")) is int else step
    history = state["log_history"] if isinstance(state.get("log_history"), list) else []
    entries = [entry for entry in history if isinstance(entry, dict) and entry.get("step") == step]
    rates = [entry["learning_rate"] for entry in entries if type(entry.get("learning_rate")) in (int, float)]
    return SavedCheckpoint(name, folder / inside, step, float(rates[-1]) if rates else None)


def checkpoint_on_hub(repo_id: str, revision: str, inside: str, options: Mapping[str, Any]) -> SavedCheckpoint:
    """Return the adapter in one commit of a repository, downloaded with ``options``."""
    # Without trainer_state.json, which a repository seldom has: what a posterior states must not depend on what is in the cache.
    names = [f"{inside}/{name}" if inside else name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    return SavedCheckpoint(f"{repo_id!r} at revision {revision!r}", download(repo_id, names, revision=revision, **options))


def compared(
    found: Sequence[SavedCheckpoint],
) -> tuple[list[tuple[SavedCheckpoint, AdapterSummary]], tuple[SavedCheckpoint, AdapterSummary]]:
    """Return the checkpoints that differ from all before them, and the last of all.

    Raises:
        AdapterMismatchError: They are not of one run.
        TooFewCollectionsError: All are the same.
    """
    kept: dict[tuple[str, ...], tuple[SavedCheckpoint, AdapterSummary]] = {}
    for checkpoint in found:
        look = AdapterSummary.at(checkpoint.read())
        first, expected = next(iter(kept.values()), (checkpoint, look))
        problem = _difference(expected, look)
        if problem:
            raise AdapterMismatchError(
                f"{checkpoint.name} holds another adapter than {first.name}. {problem} Use the checkpoints of one run."
            )
        if look.digests in kept:
            same = kept[look.digests][0].name
            logger.warning("%s has the weights of %s, bit for bit; they are counted once.", checkpoint.name, same)
        kept.setdefault(look.digests, (checkpoint, look))
    if len(kept) < 2:
        raise TooFewCollectionsError(
            f"A posterior needs at least 2 saved adapters that differ; all {len(found)} from {found[0].name} to {found[-1].name} have "
            "the same weights."
        )
    return list(kept.values()), (checkpoint, look)


def _difference(expected: AdapterSummary, look: AdapterSummary) -> str | None:
    """Say in a sentence why two adapters cannot be two states of one, or return None."""
    base, other_base = (one.config.get("base_model_name_or_path") for one in (expected, look))
    if base != other_base:
        return f"Its base model is {shortened(repr(other_base))}, the other's {shortened(repr(base))}."
    setting = differing_setting(expected.config, look.config)
    if setting:
        values = [shortened(repr(one.config.get(setting))) for one in (look, expected)]
        return f"Its {ADAPTER_CONFIG} says {setting}={values[0]}, the other's {values[1]}: the same weights would mean another function."
    difference = expected.layout.difference(look.layout, ours="The other", theirs="This one")
    if difference or expected.dtypes == look.dtypes:
        return difference
    dtypes = zip(look.layout.keys, look.dtypes, expected.dtypes, strict=True)
    key, dtype, other_dtype = next(names for names in dtypes if names[1] != names[2])
    return f"Its {key!r} is {dtype}, the other's {other_dtype}: the rounding between them would count as uncertainty."


def moving_weights(kept: Sequence[tuple[SavedCheckpoint, AdapterSummary]]) -> WeightLayout:
    """Return the layout of the weights that are not bit for bit the same everywhere; the others were not trained.

    Raises:
        SwagError: Whole numbers change.
    """
    _, look = kept[0]
    columns = zip(*(other.digests for _, other in kept), strict=True)
    moving = [index for index, digests in enumerate(columns) if len(set(digests)) > 1]
    for index in moving:
        if not look.dtypes[index].is_floating_point:
            raise SwagError(
                f"{look.layout.keys[index]!r} changes from checkpoint to checkpoint and is {look.dtypes[index]}: whole numbers have "
                "no Gaussian. Adapters that train such weights cannot be averaged."
            )
    return WeightLayout(*(tuple(names[index] for index in moving) for names in (look.layout.keys, look.layout.shapes)))


def read_again(checkpoint: SavedCheckpoint, look: AdapterSummary) -> SavedAdapter:
    """Read an adapter once more.

    Raises:
        SwagError: It is no longer what it was.
    """
    adapter = checkpoint.read()
    if AdapterSummary.at(adapter) != look:
        raise SwagError(f"{checkpoint.name} was rewritten while it was being read. Wait until the run that writes it is over.")
    return adapter
