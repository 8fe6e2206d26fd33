"""Atomic file writes: after a crash or on a full disk a file is either the old one or the complete new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Content = bytes | Iterable[memoryview | bytes]


def write_bytes(path: Path, data: Content) -> None:
    """Write one file atomically; see `write_together`."""
    write_together({Path(path): data})


def write_together(files: Mapping[Path, Content], *, check: Callable[[Mapping[Path, Path]], None] | None = None) -> None:
    """Write files that belong together: each is, whatever happens, either the old one or the complete new one.

    All of them are written beside their places first, flushed to the disk, and renamed in their order once the last is complete: a
    disk that is full leaves every old file as it was. The modes follow the umask.

    Args:
        files: The content of each path, as bytes or as pieces that are written one after the other. Their folders exist.
        check: Called once all are written and before any is renamed, with the place of each path's new content; what it raises leaves the
            old files as they were.

    Raises:
        OSError: The disk is full, say; the error names the path and the old files are untouched.
    """
    temporaries = {path: path.with_name(f".{path.name}.{secrets.token_hex(6)}") for path in files}
    try:
        for path, temporary in temporaries.items():
            content = files[path]
            try:
                with open(temporary, "xb") as file:
                    for piece in (content,) if isinstance(content, bytes) else content:
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror} (while writing it)", str(path)) from error
        if check is not None:
            check(temporaries)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(FileNotFoundError):  # renamed by now, unless something went wrong
                temporary.unlink()
    for folder in {path.parent for path in files}:
        _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
