"""Posteriors from saved checkpoints: for a training run that was made without SwagCallback.

The files are read twice. The first pass keeps digests only: it refuses what does not belong together before anything is
computed, and finds the weights that never move (VeRA's frozen projections, an embedding saved along with the adapter). Only the
second pass folds, so that the statistics, K + 3 vectors or so, are as long as the weights that were trained and no longer; an
embedding that stood still would otherwise cost more than everything else. At any time one adapter is in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from swag_trainer.adapters.plain_lora import base_changed_by, needs_lift
from swag_trainer.adapters.settings import loadable_settings
from swag_trainer.collection.saved_checkpoints import (
    SavedCheckpoint,
    checkpoint_in_folder,
    checkpoint_on_hub,
    compared,
    moving_weights,
    numbered_folders,
    read_again,
)
from swag_trainer.errors import SwagError, TooFewCollectionsError, shortened
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.moments import RunningMoments
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.swag import SwagPosterior, SwagRecord
from swag_trainer.tasks import task_of_adapter
from swag_trainer.version import __version__

logger = logging.getLogger(__name__)


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
        PosteriorFormatError: A file is damaged, a weight is not finite, or the adapter's settings are not safe to load.
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
                f"revisions={shortened(repr(revisions))} with {shortened(repr(checkpoints))}. Folders need no revisions."
            )
        options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        found = [checkpoint_on_hub(str(checkpoints), revision, inside, options) for revision in revisions]
        what = f"revisions of {str(checkpoints)!r}"
    elif isinstance(checkpoints, (str, Path)):
        found = [checkpoint_in_folder(folder, inside) for folder in numbered_folders(Path(checkpoints))]
        what = f"folders called checkpoint-N in {str(checkpoints)!r}"
    else:
        found = [checkpoint_in_folder(Path(folder), inside) for folder in checkpoints]
        what = "folders in the list" + "".join(f": {checkpoint.name}" for checkpoint in found)
    if len(found) < 2:
        raise TooFewCollectionsError(
            f"A posterior needs at least 2 saved adapters, got {len(found)} ({what}). Save more often (save_steps) and keep more "
            "(save_total_limit), or train with SwagCallback."
        )

    kept, last = compared(found)
    layout = moving_weights(kept)
    moments = RunningMoments(layout.size, rank)
    lengths: dict[SavedCheckpoint, float] = {}
    for checkpoint, look in kept:
        layout.flatten(read_again(checkpoint, look).tensors, out=moments.next_row)
        length = moments.update_from_row()
        if length is not None:  # else no more than rounding lies between this one and the last
            lengths[checkpoint] = length
    if moments.count < 2:
        raise TooFewCollectionsError(
            f"Nothing but rounding lies between the adapters from {found[0].name} to {found[-1].name}."
        )
    adapter = read_again(*last)
    loadable_settings(adapter, name=str(last[0].folder))  # else nothing could load what is made of it
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


def _training_metadata(kept: Sequence[SavedCheckpoint]) -> dict[str, Any]:
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
        "adapter_settings": adapter.settings,
        "versions": versions | ({"peft": peft_version} if peft_version else {}),
    }
