"""Paths on the command line: one that does not exist is refused with its nearest neighbour, before the Hub is asked for it."""

from __future__ import annotations

import difflib
from pathlib import Path

from swag_trainer.errors import SwagError

_FILE_SUFFIXES = {".csv", ".json", ".jsonl", ".md", ".npz", ".parquet", ".safetensors", ".tsv", ".txt", ".yaml", ".yml"}


def looks_like_path(source: str) -> bool:
    """Return whether a text can only be meant as a path: ids of repositories have one slash at most, and do not end like files."""
    return (
        source.startswith((".", "/", "~"))
        or "\\" in source
        or source.rstrip("/").count("/") > 1
        or source.endswith("/")
        or (Path(source).suffix.lower() in _FILE_SUFFIXES and not any(letter.isspace() for letter in source))
    )


def refuse_missing(source: str, option: str) -> None:
    """Refuse a path that does not exist; what may be the id of a repository on the Hub is left alone.

    Args:
        source: What was given.
        option: Where, such as "--dataset".

    Raises:
        SwagError: It is a path, and nothing is there.
    """
    if looks_like_path(source) and not Path(source).exists():
        raise SwagError(f"There is no file or folder {source!r}, which {option} names.{neighbour_hint(source)}")


def neighbour_hint(source: str) -> str:
    """Return a sentence that names the file or folder whose name is most like a missing one's; empty where none is."""
    path = Path(source)
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return f" There is no folder {str(path.parent)!r} either." if str(path.parent) not in (".", "/") else ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {str(path.with_name(close[0]))!r}?" if close else ""
