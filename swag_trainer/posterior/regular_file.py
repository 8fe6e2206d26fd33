"""Bounded reading of files from untrusted folders: regular files up to a size, and strict JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError, shortened

MAX_JSON_BYTES = 4 * 1024**2


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file and return it with its size; a pipe or a device, which could be read for ever, is refused.

    Raises:
        OSError: It is not a regular file, or cannot be opened.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        yield file, status.st_size


def read_bytes(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file of at most ``max_bytes``.

    Raises:
        PosteriorNotFoundError: There is no such file.
        PosteriorFormatError: It is not a regular file, is too large, or cannot be read.
    """
    try:
        with opened(path) as (file, size):
            if size > max_bytes:
                raise PosteriorFormatError(f"{shown(path)} has {size} bytes; more than {max_bytes} are not read.")
            return file.read(size)  # not max_bytes, for which Python takes the memory at once
    except FileNotFoundError as error:
        raise PosteriorNotFoundError(f"There is no file {shown(path)}.") from error
    except OSError as error:
        raise PosteriorFormatError(f"{shown(path)} cannot be read: {(error.strerror or str(error)).lower()}.") from error


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read the JSON object that a file holds, see `parse_json`.

    Raises:
        PosteriorNotFoundError: There is no such file.
        PosteriorFormatError: It cannot be read, or holds something else.
    """
    try:
        value = parse_json(read_bytes(path, max_bytes=max_bytes))
    except ValueError as error:
        raise PosteriorFormatError(f"{shown(path)} is not valid JSON: {shortened(str(error))}.") from error
    if not isinstance(value, dict):
        raise PosteriorFormatError(f"{shown(path)} should hold a JSON object, it holds a {type(value).__name__}.")
    return value


def parse_json(text: bytes | str, *, finite: bool = True) -> Any:
    """Parse JSON without a key twice, and not nested deeper than Python's stack.

    Args:
        text: UTF-8, or UTF-16 or UTF-32 with a byte order mark.
        finite: Refuse NaN and infinite numbers, which Python's own writer leaves in and RFC 8259 does not know.

    Raises:
        ValueError: It is not such JSON.
    """
    options: dict[str, Any] = {"parse_constant": _refuse_constant, "parse_float": _finite} if finite else {}
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicates, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def shown(path: Path) -> str:
    """Return a path for a message."""
    return shortened(repr(str(path)))


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):  # safetensors itself lets the last one win
        raise ValueError("a key occurs twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:50]} is not a finite number")
    return number
