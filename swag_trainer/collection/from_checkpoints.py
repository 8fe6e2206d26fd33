"""Posteriors from saved checkpoints: for a training run that was made without SwagCallback.

The files are read twice. The first pass keeps digests only: it refuses what does not belong together before anything is
computed, and finds the weights that never move (VeRA's frozen projections, an embedding saved along with the adapter). Only the
second pass folds, so that the statistics, K + 3 vectors or so, are as long as the weights that were trained and no longer; an
embedding that stood still would otherwise cost more than everything else. At any time one adapter is in memory.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from swag_trainer.adapters.plain_lora import base_changed_by, needs_lift
from swag_trainer.errors import (
    AdapterMismatchError,
    PosteriorFormatError,
    PosteriorNotFoundError,
    SwagError,
    TooFewCollectionsError,
)
from swag_trainer.hub import download
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.moments import RunningMoments
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SavedAdapter
from swag_trainer.posterior.storage import content_digest
from swag_trainer.posterior.swag import SwagPosterior, SwagRecord
from swag_trainer.posterior.tensor_file import check_finite
from swag_trainer.tasks import task_of_adapter
from swag_trainer.version import __version__

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"checkpoint-([0-9]+)")
# Settings that must be equal even where only one adapter_config.json states them; the others may be news of a later PEFT.
_ALWAYS_COMPARED = {"alpha_pattern", "lora_alpha", "peft_type", "r", "target_modules", "use_dora", "use_rslora"}
# Settings that do not change what saved weights mean; neither does any dropout. The base model has a message of its own.
_NEVER_COMPARED = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version"}
# PEFT makes sets of these, and a set is written in another order by each process.
_UNORDERED = {"exclude_modules", "feedforward_modules", "modules_to_save", "target_modules"}


@dataclass(frozen=True)
class _Checkpoint:
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
class _Look:
    """What the first pass keeps of an adapter: everything but its numbers."""

    config: Mapping[str, Any]
    layout: WeightLayout
    dtypes: tuple[torch.dtype, ...]
    digests: tuple[str, ...]

    @classmethod
    def at(cls, adapter: SavedAdapter) -> _Look:
        layout = WeightLayout.of(adapter.tensors)
        tensors = [adapter.tensors[key] for key in layout.keys]
        digests = tuple(content_digest({"": tensor}) for tensor in tensors)
        return cls(adapter.config, layout, tuple(tensor.dtype for tensor in tensors), digests)


def posterior_from_checkpoints(
    checkpoints: str | Path | Iterable[str | Path],
    *,
    rank: int = 20,
    revisions: Sequence[str] | None = None,
    final_weights: Literal["mean", "trained"] = "mean",
    adapter_name: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: str | None = None,
    pad_token_id: int | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> SwagPosterior:
    """Make a posterior of adapters that were saved already, without training.

    It is the posterior that `SwagCallback` would have collected at these steps. The callback also holds the learning rate while
    it collects; checkpoints of a run whose rate fell to zero say more about its schedule than about the weights, so name those
    of the part you mean. Weights that are bit for bit the same in every checkpoint were not trained: they are no part of the
    posterior and stay in the adapter as they are.

    Args:
        checkpoints: A list of folders, oldest first; one folder that holds folders called checkpoint-N, all of which are taken
            in the order of N; or, with ``revisions``, "user/name" on the Hub. Only adapter_config.json,
            adapter_model.safetensors and, in folders, trainer_state.json (step and learning rate) are read.
        rank: K, how many deviations to keep. 0 gives SWAG-diagonal, 1 is no covariance and refused.
        revisions: Branches, tags or commits of the repository that each hold the adapter, oldest first.
        final_weights: What the posterior's adapter holds: the posterior "mean", or what the last checkpoint does ("trained").
        adapter_name: Which adapter, where it is not PEFT's "default" and so lies in a folder of its own.
        labels: Names of the classes in the order of the logits; an adapter's files do not say them, and a pipeline shows them.
        problem_type: As in the base model's config, where that is not transformers' own rule for the number of labels.
        pad_token_id: Number of the padding token, for a decoder whose base model's config has none.
        token: Access token, as everywhere in huggingface_hub; so are the next two.

    Raises:
        TooFewCollectionsError: Fewer than two adapters, or fewer than two that differ; equal ones are counted once.
        PosteriorNotFoundError: A folder, a repository or a revision does not exist or has no such adapter.
        PosteriorFormatError: A file is damaged, or a weight is not finite.
        AdapterMismatchError: Another base model, setting, name, shape or dtype of weights than in the first checkpoint.
        SwagError: ``rank`` or ``final_weights`` is out of range, ``revisions`` came with folders, weights that are whole numbers
            were trained, or a file changed while it was read.
    """
    if rank < 0 or rank == 1:
        raise SwagError(f"posterior_from_checkpoints(rank=...) must be 0 (diagonal only) or at least 2, got {rank}.")
    if final_weights not in ("mean", "trained"):
        raise SwagError(f'posterior_from_checkpoints(final_weights=...) must be "mean" or "trained", got {final_weights!r}.')
    inside = "" if adapter_name in (None, "default") else adapter_name  # PEFT's own rule
    if revisions is not None:
        if isinstance(revisions, str) or not isinstance(checkpoints, (str, Path)) or Path(checkpoints).is_dir():
            raise SwagError(
                "revisions=[...] is a list of commits of one repository on the Hub and goes with that repository's id; got "
                f"revisions={_cut(revisions)} with {_cut(checkpoints)}. Folders need no revisions."
            )
        options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        found = [_from_hub(str(checkpoints), revision, inside, options) for revision in revisions]
        what = f"revisions of {str(checkpoints)!r}"
    elif isinstance(checkpoints, (str, Path)):
        found = [_from_folder(folder, inside) for folder in _numbered_folders(Path(checkpoints))]
        what = f"folders called checkpoint-N in {str(checkpoints)!r}"
    else:
        found = [_from_folder(Path(folder), inside) for folder in checkpoints]
        what = "folders in the list" + "".join(f": {checkpoint.name}" for checkpoint in found)
    if len(found) < 2:
        raise TooFewCollectionsError(
            f"A posterior needs at least 2 saved adapters, got {len(found)} ({what}). Save more often (save_steps) and keep more "
            "(save_total_limit), or train with SwagCallback."
        )

    kept, last = _survey(found)
    layout = _moving(kept)
    moments = RunningMoments(layout.size, rank)
    lengths: dict[_Checkpoint, float] = {}
    for checkpoint, look in kept:
        layout.flatten(_read_again(checkpoint, look).tensors, out=moments.next_row)
        length = moments.update_from_row()
        if length is not None:  # else no more than rounding lies between this one and the last
            lengths[checkpoint] = length
    if moments.count < 2:
        raise TooFewCollectionsError(
            f"Nothing but rounding lies between the adapters from {found[0].name} to {found[-1].name}."
        )
    adapter = _read_again(*last)
    if final_weights == "mean":
        adapter = adapter.with_weights(layout.unflatten(moments.mean))
    collection = SwagRecord(
        num_collected=moments.count, deviation_norms=list(lengths.values()), **_training_metadata(list(lengths))
    )
    record = PosteriorRecord(
        labels=None if labels is None else [str(label) for label in labels],
        problem_type=problem_type,
        pad_token_id=pad_token_id,
        **_adapter_metadata(adapter),
    )
    adapter = replace(adapter, is_reproducible=not needs_lift(adapter.config))
    gaussian = LowRankGaussian(moments.mean, moments.variance, moments.deviations)
    return SwagPosterior(layout, gaussian, record, collection, adapter)


def _numbered_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise PosteriorNotFoundError(
            f"There is no folder {str(folder)!r}. For a repository on the Hub say which of its commits hold the adapter, oldest "
            "first: revisions=[...]."
        )
    numbers = {path: _NUMBERED.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()}
    return sorted((path for path in numbers if numbers[path]), key=lambda path: int(numbers[path][1]))


def _from_folder(folder: Path, inside: str) -> _Checkpoint:
    if not folder.is_dir():
        raise PosteriorNotFoundError(f"There is no folder {str(folder)!r}; folders that hold saved adapters were expected.")
    name, path, number = repr(str(folder)), folder / "trainer_state.json", _NUMBERED.fullmatch(folder.name)
    step = int(number[1]) if number else None
    try:
        state = json.loads(path.read_bytes())
    except FileNotFoundError:
        return _Checkpoint(name, folder / inside, step)
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
    return _Checkpoint(name, folder / inside, step, float(rates[-1]) if rates else None)


def _from_hub(repo_id: str, revision: str, inside: str, options: Mapping[str, Any]) -> _Checkpoint:
    # Without trainer_state.json, which a repository seldom has: what a posterior states must not depend on what is in the cache.
    names = [f"{inside}/{name}" if inside else name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    return _Checkpoint(f"{repo_id!r} at revision {revision!r}", download(repo_id, names, revision=revision, **options))


def _survey(
    found: Sequence[_Checkpoint],
) -> tuple[list[tuple[_Checkpoint, _Look]], tuple[_Checkpoint, _Look]]:
    """The first pass: the checkpoints that differ from all before them, and the last of all."""
    kept: dict[tuple[str, ...], tuple[_Checkpoint, _Look]] = {}
    for checkpoint in found:
        look = _Look.at(checkpoint.read())
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


def _difference(expected: _Look, look: _Look) -> str | None:
    """Say in a sentence why two adapters cannot be two states of one, or return None."""
    base, other_base = (one.config.get("base_model_name_or_path") for one in (expected, look))
    if base != other_base:
        return f"Its base model is {_cut(other_base)}, the other's {_cut(base)}."
    setting = _differing_setting(expected.config, look.config)
    if setting:
        values = [_cut(one.config.get(setting)) for one in (look, expected)]
        return f"Its {ADAPTER_CONFIG} says {setting}={values[0]}, the other's {values[1]}: the same weights would mean another function."
    difference = expected.layout.difference(look.layout, ours="The other", theirs="This one")
    if difference or expected.dtypes == look.dtypes:
        return difference
    dtypes = zip(look.layout.keys, look.dtypes, expected.dtypes, strict=True)
    key, dtype, other_dtype = next(names for names in dtypes if names[1] != names[2])
    return f"Its {key!r} is {dtype}, the other's {other_dtype}: the rounding between them would count as uncertainty."


def _differing_setting(config: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    def meaning(name: str, value: object) -> object:
        return sorted(map(str, value)) if name in _UNORDERED and isinstance(value, list) else value or None

    stated_by_both = {name for name in config if name in other and not name.endswith("dropout")} - _NEVER_COMPARED
    compared = sorted(stated_by_both | _ALWAYS_COMPARED)
    return next((name for name in compared if meaning(name, config.get(name)) != meaning(name, other.get(name))), None)


def _moving(kept: Sequence[tuple[_Checkpoint, _Look]]) -> WeightLayout:
    """The weights that are not bit for bit the same everywhere; the others were not trained."""
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


def _read_again(checkpoint: _Checkpoint, look: _Look) -> SavedAdapter:
    adapter = checkpoint.read()
    if _Look.at(adapter) != look:
        raise SwagError(f"{checkpoint.name} was rewritten while it was being read. Wait until the run that writes it is over.")
    return adapter


def _training_metadata(kept: Sequence[_Checkpoint]) -> dict[str, Any]:
    steps = [checkpoint.step for checkpoint in kept]
    if None in steps:
        steps = list(range(1, len(kept) + 1))
    if steps != sorted(set(steps)):
        logger.warning(
            "The checkpoints are folded in the order given, which is not that of training: their steps are %s. Mean and variance do "
            "not depend on it, the deviations do.",
            steps,
        )
    rates = [checkpoint.learning_rate for checkpoint in kept]
    return {
        "schedule": f"{len(kept)} saved checkpoints",
        "first_step": steps[0],
        "last_step": steps[-1],
        "first_learning_rate": rates[0],
        "last_learning_rate": rates[-1],
        "steps": steps,
        "learning_rates": rates,
    }


def _adapter_metadata(adapter: SavedAdapter) -> dict[str, Any]:
    def text(name: str) -> str | None:
        value = adapter.config.get(name)
        return value if isinstance(value, str) else None

    peft_version = text("peft_version")
    versions = {"swag_trainer": __version__, "torch": version("torch")}
    return {
        "base_model": adapter.base_model,
        "base_revision": text("revision"),
        "task": task_of_adapter(adapter.config),
        "initialisation": base_changed_by(adapter.config),
        "adapter_digest": adapter.digest,
        "versions": versions | ({"peft": peft_version} if peft_version else {}),
    }


def _cut(value: object) -> str:
    return repr(value)[:200]
