"""Safetensors files, written tensor by tensor and read with limits on what an untrusted file may claim.

The format: https://huggingface.co/docs/safetensors. It carries no checksum; `swag_trainer.posterior.storage` adds one.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError, SwagError, shortened
from swag_trainer.posterior.regular_file import opened, parse_json, shown

MAX_FILE_BYTES = 32 * 1024**3
MAX_HEADER_BYTES = 16 * 1024**2
MAX_NAME_LENGTH = 512
MAX_MAGNITUDE = 1e18  # from 1.8e19 on the square of a number does not fit into float32
_PREFIX_LENGTH = len("deviations/")
_BLOCK = 2**22
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def check_names(keys: Iterable[str]) -> None:
    """Refuse weights whose names no file could carry, before anything is trained for it.

    Raises:
        SwagError: A name has characters that cannot be printed, has "..", or is too long.
    """
    for key in keys:
        if len(key) > MAX_NAME_LENGTH - _PREFIX_LENGTH or not is_acceptable_name(key):
            raise SwagError(
                f"The weight {shortened(repr(key))} could not be saved: names in a posterior's file consist of printable characters "
                f'without "..", at most {MAX_NAME_LENGTH - _PREFIX_LENGTH} of them. Rename the module, or do not train it.'
            )


def is_acceptable_name(name: str) -> bool:
    """Return whether a tensor may have this name in a file.

    Names never become paths, and messages show them with `repr`; what cannot be printed (control characters, bidirectional overrides,
    surrogates) and ".." are refused all the same.
    """
    return 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and ".." not in name


def tensor_bytes(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in row-major order, without a copy where its rows are contiguous."""
    tensor = tensor.detach().cpu()
    by_row = tensor.dim() > 0 and len(tensor) > 0 and not tensor.is_contiguous() and tensor[0].is_contiguous()
    for part in tensor if by_row else (tensor,):
        yield memoryview(part.contiguous().reshape(-1).view(torch.uint8).numpy())


def file_content(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[memoryview | bytes]:
    """Yield the content of a safetensors file piece by piece, so that no copy of the whole is ever in memory.

    Args:
        tensors: What to write.
        metadata: Text by key, for the header.
    """
    # The widest dtypes first: then every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end = start + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield from tensor_bytes(tensors[name])


def read_tensors(path: Path, *, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read any safetensors file with limits on what it may claim, and return its tensors and its metadata.

    The header is read first, and checked against the size of the file. The bytes are read into memory once, and the tensors are views of them. They are not mapped: a mapped file that is truncated later
    kills the process.

    Args:
        path: The file.
        mapped: Map it all the same, so that the tensors take no memory: for a file that no other process knows of yet.

    Raises:
        PosteriorNotFoundError: There is no such file.
        PosteriorFormatError: It is not a well-formed safetensors file with names and sizes that are accepted.
    """
    path = Path(path)
    with _opened(path) as (file, size):
        header, start = _parse_header(file, size, path)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise PosteriorFormatError(f"{shown(path)} has a damaged header: its metadata is not text by key.")
        try:
            ranges = {name: _checked_entry(entry) for name, entry in header.items()}
            _check_coverage(ranges, size - start)
            # Only now: a sparse file takes no space on the disk, and would take its whole size in memory.
            data = (_mapped_bytes(path, size) if mapped else _read_bytes(file, size, path))[start:]
            tensors = {name: _view(data, *ranges[name]) for name in ranges}
        except (TypeError, ValueError, KeyError, OverflowError, RuntimeError) as error:
            raise PosteriorFormatError(f"{shown(path)} is not a readable safetensors file: {shortened(str(error))}.") from error
    return tensors, metadata


def check_finite(tensors: Mapping[str, Tensor], path: Path, *, below: float = math.inf) -> None:
    """Refuse NaN, infinite and absurdly large values.

    Args:
        tensors: What the file holds; whole numbers pass.
        path: The file.
        below: What every absolute value must be below.

    Raises:
        PosteriorFormatError: A tensor has some; the error names ``path``, the tensor and how many.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # torch does not compare numbers of 8 bits
            bad = sum(int((~(block.abs() < below)).sum()) for block in wide.reshape(-1).split(_BLOCK))
            if bad:
                limit = "finite" if below == math.inf else f"finite and below {below:g}"
                raise PosteriorFormatError(f"{shown(path)}: {bad} of {tensor.numel()} values of {name!r} are not {limit}.")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file that is a regular one and not too large, and return it with its size."""
    try:
        with opened(path) as (file, size):
            if size > MAX_FILE_BYTES:
                raise PosteriorFormatError(f"{shown(path)} has {size} bytes; more than {MAX_FILE_BYTES} are not read.")
            yield file, size
    except FileNotFoundError as error:
        raise PosteriorNotFoundError(f"There is no file {shown(path)}.") from error
    except IsADirectoryError as error:
        raise PosteriorFormatError(f"{shown(path)} is a folder; a safetensors file was expected.") from error
    except OSError as error:
        reason = "it is not a regular file" if error.errno == errno.EINVAL else (error.strerror or str(error)).lower()
        raise PosteriorFormatError(f"{shown(path)} cannot be read: {reason}.") from error


def _read_bytes(file: BinaryIO, size: int, path: Path) -> Tensor:
    """The file's bytes, uint8, in memory of torch's own, which is aligned for every dtype."""
    buffer = torch.empty(size, dtype=torch.uint8)
    file.seek(0)
    if file.readinto(buffer.numpy()) < size or file.read(1):
        raise PosteriorFormatError(f"{shown(path)} changed while it was read. Read it again.")
    return buffer


def _mapped_bytes(path: Path, size: int) -> Tensor:
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def _parse_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The header as JSON and where the data starts; refused before anything is allocated for it."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise PosteriorFormatError(
            f"{shown(path)} is truncated or not a safetensors file: its header does not fit in its {size} bytes."
        )
    if length > MAX_HEADER_BYTES:
        raise PosteriorFormatError(f"{shown(path)} has a header of {length} bytes; more than {MAX_HEADER_BYTES} are not read.")
    try:
        header = parse_json(file.read(length))
    except ValueError as error:
        raise PosteriorFormatError(f"{shown(path)} has a damaged header: {shortened(repr(error))}.") from error
    if not isinstance(header, dict):
        raise PosteriorFormatError(f"{shown(path)} has a damaged header: it is not a JSON object.")
    for name in header:
        if not is_acceptable_name(name):
            raise PosteriorFormatError(
                f"{shown(path)} has a tensor with the name {shortened(repr(name))}; up to {MAX_NAME_LENGTH} printable characters "
                'without ".." are accepted.'
            )
    return header, 8 + length


def _checked_entry(entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, start and end of a tensor.

    Raises:
        ValueError: They do not fit each other, or are not numbers.
    """
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("a tensor needs dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers) or len(offsets) != 2 or len(shape) > 64:
        raise ValueError("invalid shape or data_offsets")
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"unknown dtype {entry['dtype']!r}")
    dtype, (start, end) = _DTYPES[entry["dtype"]], offsets
    if end - start != prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's shape and dtype do not ask for as many bytes as its data_offsets span")
    return dtype, tuple(shape), start, end


def _check_coverage(ranges: Mapping[str, tuple[Any, Any, int, int]], size: int) -> None:
    """Refuse tensors that overlap, leave holes, or do not end with the file.

    Raises:
        ValueError: They do.
    """
    position = 0
    for _, _, start, end in sorted(ranges.values(), key=lambda item: item[2:]):
        if start != position:
            raise ValueError("tensors overlap or leave a hole")
        position = end
    if position != size:
        raise ValueError(f"the tensors span {position} bytes, the file has {size} for them")


def _view(data: Tensor, dtype: torch.dtype, shape: tuple[int, ...], start: int, end: int) -> Tensor:
    piece = data[start:end]
    if piece.storage_offset() % dtype.itemsize:  # a writer that did not align its tensors
        piece = piece.clone()
    return piece.view(dtype).reshape(shape)
