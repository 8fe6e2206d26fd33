"""Detection of truncated files by their headers and end marks."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from swag_trainer.posterior.regular_file import opened

MAX_STATE_BYTES = 1024**3  # of trainer_state.json, which holds every log
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
        if size > MAX_STATE_BYTES:
            raise IncompleteError(f"{path.name} has {size} bytes; more than {MAX_STATE_BYTES} are not read.")
        text = file.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise IncompleteError(f"{path.name} is truncated or not valid JSON: it has {size} bytes.") from None
    if not isinstance(value, dict):
        raise IncompleteError(f"{path.name} should hold a JSON object, it holds a {type(value).__name__}.")
    return value


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
