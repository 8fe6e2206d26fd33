"""Runs of `train` that were interrupted: which folders hold one, with which options it was begun, and what it goes on from."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swag_trainer.cli.files import write_files
from swag_trainer.cli.resumable import ResumableInterrupt
from swag_trainer.collection.checkpoints import last_complete_checkpoint
from swag_trainer.errors import SwagError
from swag_trainer.posterior.folder import POSTERIOR_FILE

RUN_FILE = "unfinished_run.json"


@dataclass(frozen=True)
class PlannedRun:
    """What a command does with the folder of one seed.

    Attributes:
        seed: Of the run.
        folder: For checkpoints, and then for adapter, posterior and tokenizer.
        is_finished: Whether there is nothing left to do: the folder has the posterior already.
        is_continued: Whether the folder holds an interrupted run of the same options.
        checkpoint: The checkpoint that it goes on from; None for one that begins with its first step.
    """

    seed: int
    folder: Path
    is_finished: bool = False
    is_continued: bool = False
    checkpoint: str | None = None


def folder_of(seed: int, output: str) -> Path:
    """Return the folder of one of several seeds."""
    return Path(output) / f"seed-{seed}"


def plan(folders: Mapping[int, Path], settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> list[PlannedRun]:
    """Return what is to be done for each seed.

    Args:
        folders: That of each run, by its seed.
        settings: Options that decide what the run computes, as JSON values.
        resume: Whether an interrupted run goes on.
        overwrite: Whether it may be thrown away, where ``resume`` is False.

    Raises:
        SwagError: The folder holds an interrupted run, and neither was asked for; or one of other options.
    """
    return [_planned(seed, folder, settings, resume, overwrite) for seed, folder in folders.items()]


@contextlib.contextmanager
def marked_unfinished(runs: Sequence[PlannedRun], settings: Mapping[str, Any]) -> Iterator[None]:
    """Record the options in each folder, and delete the checkpoints of runs that begin anew, for the length of a ``with`` block.

    `mark_finished` removes the record of one run. Where the block fails before anything was saved, all go, but for those beside an earlier
    posterior, which is not that of the run.
    """
    folders = [run.folder for run in runs]
    for run in runs:
        if not run.is_continued:
            for checkpoint in _checkpoints(run.folder):
                shutil.rmtree(checkpoint)
    write_files({folder / RUN_FILE: json.dumps(dict(settings), indent=1).encode() for folder in folders})
    try:
        yield
    except BaseException as error:
        if not isinstance(error, ResumableInterrupt) and not any(_checkpoints(folder) for folder in folders):
            for folder in folders:
                if not (folder / POSTERIOR_FILE).exists():
                    mark_finished(folder)
        raise


def mark_finished(folder: Path) -> None:
    """Remove the record of an unfinished run."""
    (folder / RUN_FILE).unlink(missing_ok=True)


def _planned(seed: int, folder: Path, settings: Mapping[str, Any], resume: bool, overwrite: bool) -> PlannedRun:
    begun = _settings_in(folder)
    if not resume:
        if (begun is not None or _checkpoints(folder)) and not overwrite and not (folder / POSTERIOR_FILE).exists():
            raise SwagError(
                f"{str(folder)!r} holds a run that was interrupted: --resume continues it, --overwrite deletes its checkpoints and begins "
                "anew."
            )
        return PlannedRun(seed, folder)
    if begun is None:
        checkpoint = None if (folder / POSTERIOR_FILE).exists() else last_complete_checkpoint(folder)
        is_finished = (folder / POSTERIOR_FILE).exists()
        return PlannedRun(seed, folder, is_finished=is_finished, is_continued=checkpoint is not None, checkpoint=checkpoint)
    changed = [name for name in settings if begun.get(name) != settings[name]]
    if changed:
        option = f"--{changed[0].replace('_', '-')}"
        raise SwagError(
            f"The run in {str(folder)!r} was begun with {option} {begun.get(changed[0])!r}, and is to go on with {settings[changed[0]]!r}: it "
            "would be neither of the two. Resume it with the options that it was begun with, or begin anew with --overwrite, without "
            "--resume."
        )
    return PlannedRun(seed, folder, is_continued=True, checkpoint=last_complete_checkpoint(folder))


def _settings_in(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SwagError(f"{str(path)!r}, the record of an interrupted run, cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise SwagError(f"{str(path)!r} is not the record of an interrupted run: it holds {type(settings).__name__}.")
    return settings


def _checkpoints(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
