"""Detection of truncated files by their headers and end marks."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_MAX_JSON_BYTES = 1024**3
_MAX_HEADER_BYTES = 100_000_000  # of a safetensors file; the library reads no longer ones
_ZIP_END = struct.Struct("<4sHHHHIIH")


class IncompleteError(Exception):
    """A file, or the checkpoint that it is part of, was not written to its end; the message says what is missing."""


def check_written(path: Path) -> None:
    """Refuse a safetensors file or a file of ``torch.save`` that was not written to its end; its data is not read."""
    with opened(path) as (file, size):
        whole = _is_whole_safetensors(file, size) if path.suffix == ".safetensors" else _is_whole_zip(file, size)
    if not whole:
        raise IncompleteError(f"{path.name} is truncated: it has {size} bytes.")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        IncompleteError: It is truncated, too large, or holds something else.
    """
    with opened(path) as (file, size):
        if size > _MAX_JSON_BYTES:
            raise IncompleteError(f"{path.name} has {size} bytes; more than {_MAX_JSON_BYTES} are not read.")
        text = file.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise IncompleteError(f"{path.name} is truncated or not valid JSON: it has {size} bytes.") from None
    if not isinstance(value, dict):
        raise IncompleteError(f"{path.name} should hold a JSON object, it holds a {type(value).__name__}.")
    return value


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file and return it with its size; a pipe or a device, which could be read for ever, is refused."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        yield file, status.st_size


def _is_whole_safetensors(file: BinaryIO, size: int) -> bool:
    length = int.from_bytes(file.read(8), "little")
    if length > min(size, _MAX_HEADER_BYTES):
        return False
    try:
        header = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0) == size
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False


def _is_whole_zip(file: BinaryIO, size: int) -> bool:
    """A zip file ends with a record that says where its directory lies: just before, or before the 76 bytes of its zip64 twin."""
    if size < _ZIP_END.size:
        return False
    file.seek(size - _ZIP_END.size)
    signature, *_, directory_size, directory_start, comment_size = _ZIP_END.unpack(file.read(_ZIP_END.size))
    gap = size - _ZIP_END.size - directory_size - directory_start
    above_4_gib = 0xFFFFFFFF in (directory_size, directory_start)
    return signature == b"PK\5\6" and comment_size == 0 and (above_4_gib or gap in (0, 76))
