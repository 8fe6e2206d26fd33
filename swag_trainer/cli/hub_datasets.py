"""Data sets on the Hub: the splits of one commit, with retries.

`datasets.load_dataset` is asked for one commit. Where a request fails, it goes on with another: it takes the newest commit in its cache for
the one that was asked for, and a card that cannot be read for one that is not there. What comes is therefore checked, and the files that
say where the splits lie are fetched first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from swag_trainer.cli.files import require
from swag_trainer.cli.paths import neighbour_hint
from swag_trainer.errors import SwagError
from swag_trainer.retries import retried

# They say which files are the splits, and what their columns are.
_DESCRIPTIONS = {"README.md", ".huggingface.yaml", "dataset_infos.json"}


def load_splits(name: str, config: str | None) -> tuple[Mapping[str, Any], str | None]:
    """Load a data set.

    Args:
        name: On the Hub.
        config: Which of its configurations; None for the only one, or its default.

    Returns:
        Its splits by name, and their commit; None where that is not known, as it can be offline.

    Raises:
        SwagError: There is none of that name, or it cannot be loaded; or, after several attempts, what comes is of another commit.
    """
    datasets = require("datasets")
    try:
        commit = _commit_of(name)
        load = partial(datasets.load_dataset, name, config, revision=commit)
        if commit is None:
            splits = load()
            return splits, next(iter(_commits(splits)), None)
        # datasets does not pass on which reply of the Hub it was that an error comes from.
        vague = (ConnectionError, LocalEntryNotFoundError, _OtherCommitError)
        return retried(partial(_at_commit, load, commit), also=vague), commit
    except HFValidationError as error:
        raise SwagError(f"{name!r} is neither a file or folder that exists nor the name of a data set on the Hub.") from error
    except (
        HTTPError,
        OSError,
        RuntimeError,
        ValueError,
        datasets.exceptions.DatasetsError,
    ) as error:  # RuntimeError: it has code
        raise SwagError(
            f"There is no file or folder {name!r} here, and a data set of that name cannot be loaded from the Hub.{neighbour_hint(name)} "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error


class _OtherCommitError(OSError):
    """What was loaded is not what was asked for."""


def _commit_of(name: str) -> str | None:
    """Return the newest commit of a data set, with the files in the cache that describe it; None offline."""
    try:
        info = retried(lambda: HfApi().dataset_info(name))
        for file in sorted(_DESCRIPTIONS & {sibling.rfilename for sibling in info.siblings or ()}):
            retried(partial(hf_hub_download, name, file, repo_type="dataset", revision=info.sha))
    except OfflineModeIsEnabled:
        return None
    return info.sha


def _at_commit(load: Callable[[], Mapping[str, Any]], commit: str) -> Mapping[str, Any]:
    splits = load()
    others = _commits(splits) - {commit}
    if others:
        raise _OtherCommitError(f"the commit {commit} was asked for, and {min(others)} came out of the cache of datasets.")
    return splits


def _commits(splits: Mapping[str, Any]) -> set[str]:
    """Return the commits that splits are of: datasets keeps each in a folder of its own; none for what lies in memory."""
    return {Path(file["filename"]).parent.name for split in splits.values() for file in split.cache_files}
