"""Records of SwagCallbacks in a checkpoint: the names of their files, and their entries in trainer_state.json."""

from __future__ import annotations

import re
from typing import Any

from transformers import TrainerState

from swag_trainer.errors import SwagError, shortened

RECORDS_KEY = "swag_trainer"
MOMENTS_FILE = "swag_moments.safetensors"

_CALLBACK_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def moments_file(name: str) -> str:
    """Return the file name of the moments of one callback in a checkpoint folder.

    >>> moments_file("default"), moments_file("head")
    ('swag_moments.safetensors', 'swag_moments.head.safetensors')

    Raises:
        ValueError: ``name`` cannot be the name of a callback.
    """
    if not isinstance(name, str) or not _CALLBACK_NAME.fullmatch(name):
        raise ValueError(f"The name of a SwagCallback has 1 to 64 letters, digits, '_' or '-', got {shortened(repr(name))}.")
    return MOMENTS_FILE if name == "default" else f"swag_moments.{name}.safetensors"


def stored_records(stateful_callbacks: object) -> dict[str, dict[str, Any]]:
    """Return the record of every SwagCallback, ``{name: record}``, out of the entries of a trainer_state.json about callbacks.

    That file is untrusted input. An entry is taken only if its key can be the name of a callback and its value is an object
    whose digests are digests or null; nothing in it is ever a path. The other values may be any JSON: compare them, do not use them.

    Args:
        stateful_callbacks: ``TrainerState.stateful_callbacks``, of whatever type it turned out to be.
    """
    entries = stateful_callbacks.get(RECORDS_KEY) if isinstance(stateful_callbacks, dict) else None
    if not isinstance(entries, dict):
        return {}
    return {name: dict(record) for name, record in entries.items() if _is_record(name, record)}


def register(state: TrainerState, *, callback: str, name: str) -> dict[str, Any] | None:
    """Register a callback in this run's state, and return its record in the checkpoint that the run was resumed from.

    Args:
        state: The run's state.
        callback: Name of the callback's class, under which the Trainer keeps an entry.
        name: Name of the callback.

    Raises:
        SwagError: The Trainer has two callbacks of this name.
    """
    names = state.__dict__.setdefault("_swag_names", set())  # not a field of the dataclass, so it is not saved
    if name in names:
        raise SwagError(
            f"One Trainer got two SwagCallbacks called {name!r}; they would write one file in each checkpoint. "
            'Name one of them: SwagCallback(..., name="late").'
        )
    names.add(name)
    # The Trainer subscripts this entry at every save, and a checkpoint made without this callback lacks it.
    state.stateful_callbacks[callback] = _NothingToRestore()
    return stored_records(state.stateful_callbacks).get(name)


def store(state: TrainerState, name: str, record: dict[str, Any]) -> None:
    """Put a callback's record of this step beside those that the run's other callbacks made at this step; older ones go."""
    stored = stored_records(state.stateful_callbacks)
    others = {other: kept for other, kept in stored.items() if kept.get("step") == state.global_step}
    state.stateful_callbacks[RECORDS_KEY] = {**others, name: record}


class _NothingToRestore(list):
    """An entry of ``TrainerState.stateful_callbacks`` that stays empty, though the Trainer appends to a list at every save."""

    def append(self, item: object) -> None:
        """Leave it."""


def _is_record(name: object, record: object) -> bool:
    if not isinstance(name, str) or not _CALLBACK_NAME.fullmatch(name):
        return False
    if not isinstance(record, dict) or "digest" not in record:
        return False
    digests = (record["digest"], record.get("adapters_digest"))
    return all(digest is None or (isinstance(digest, str) and _DIGEST.fullmatch(digest)) for digest in digests)
