"""Tensors and text <-> one safetensors file, so that nothing half-written, edited or absurd is ever taken for a posterior.

This room knows dictionaries of tensors and JSON documents, neither what they mean nor where the Hub is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError, shortened

FORMAT_VERSION = 1
MAX_FILE_BYTES = 32 * 1024**3
MAX_HEADER_BYTES = 16 * 1024**2
_METADATA_KEY = "swag_trainer"
_TENSOR_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_./-]{1,512}")


def content_digest(tensors: Mapping[str, Tensor], document: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every tensor, in the order of the names, and over the document.

    Safetensors files carry no checksum of their own: 2,000 of 2,000 single flipped bits in the data were accepted.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    if document is not None:
        digest.update(json.dumps(document, sort_keys=True).encode())
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is, whatever happens, either the old one or the whole new one; see `write_together`."""
    write_together({Path(path): data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: each is, whatever happens, either the old one or the whole new one.

    All of them are written beside their places first, flushed to the disk, and renamed in their order once the last is complete: a
    disk that is full leaves every old file as it was. The modes follow the umask.

    Args:
        files: What each path shall hold; all in one folder.

    Raises:
        OSError: The disk is full, say; the error names the path and the old files are untouched.
    """
    temporaries = {path: path.with_name(f".{path.name}.{secrets.token_hex(6)}") for path in files}
    try:
        for path, temporary in temporaries.items():
            try:
                with open(temporary, "xb") as file:
                    file.write(files[path])
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror} (while writing it)", str(path)) from error
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(FileNotFoundError):  # renamed by now, unless something went wrong
                temporary.unlink()
    _flush_folder(next(iter(files)).parent)


def write_file(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> str:
    """Write tensors and a JSON document, with a digest over both, and return that digest.

    Args:
        path: Where; the old file stays until the new one is complete.
        tensors: What; moved to the CPU and made contiguous.
        document: JSON values only.
    """
    data, digest = encode(tensors, document)
    write_bytes(path, data)
    return digest


def encode(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the bytes that `write_file` writes, and the digest."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = content_digest(tensors, document)
    text = json.dumps({"format_version": FORMAT_VERSION, "digest": digest, "document": document})
    return safetensors.torch.save(tensors, metadata={"format": "pt", _METADATA_KEY: text}), digest


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read what `write_file` wrote and return the tensors, the document and the digest.

    Raises:
        PosteriorNotFoundError: There is no such file.
        PosteriorFormatError: The file is truncated, edited, of a newer format or was not written by this package.
    """
    tensors, metadata = read_tensors(path)
    if _METADATA_KEY not in metadata:
        raise PosteriorFormatError(
            f"{_shown(path)} is a safetensors file that swag_trainer did not write: it has no {_METADATA_KEY!r} metadata."
        )
    try:
        envelope = json.loads(metadata[_METADATA_KEY], object_pairs_hook=_refuse_duplicates)
        version, digest, document = envelope["format_version"], envelope["digest"], envelope["document"]
    except (ValueError, KeyError, TypeError) as error:
        raise PosteriorFormatError(f"{_shown(path)} has damaged metadata: {shortened(repr(error))}.") from error
    if version != FORMAT_VERSION:
        raise PosteriorFormatError(
            f"{_shown(path)} has format version {shortened(repr(version))}, this swag_trainer reads version {FORMAT_VERSION}. "
            "Update swag_trainer, or collect again."
        )
    found = content_digest(tensors, document)
    if found != digest:
        raise PosteriorFormatError(
            f"{_shown(path)} was changed or damaged after it was written: its content has the digest {found[:12]}..., its metadata "
            f"says {shortened(repr(digest))}. If it came from the Hub, load it again with force_download=True."
        )
    check_finite(tensors, path)
    return tensors, document, digest


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read any safetensors file with limits on what it may claim, and return its tensors and its metadata.

    The bytes are read, not mapped: a mapped file that somebody truncates later kills the process.

    Raises:
        PosteriorNotFoundError: There is no such file.
        PosteriorFormatError: It is not a well-formed safetensors file with names and sizes we accept.
    """
    data = _read_bytes(Path(path))
    header = _parse_header(data, path)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, TypeError, ValueError, KeyError, OverflowError, RuntimeError) as error:
        raise PosteriorFormatError(f"{_shown(path)} is no readable safetensors file: {shortened(str(error))}.") from error
    return tensors, header.get("__metadata__", {})


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse values that no posterior can be made of.

    Raises:
        PosteriorFormatError: A tensor has NaN or infinite values; the error names ``path``, the tensor and how many.
    """
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise PosteriorFormatError(f"{_shown(path)}: {bad} of {tensor.numel()} values of {name!r} are not finite.")


def _read_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PosteriorFormatError(f"{_shown(path)} is not a regular file.")
            if status.st_size > MAX_FILE_BYTES:
                raise PosteriorFormatError(
                    f"{_shown(path)} has {status.st_size} bytes; more than {MAX_FILE_BYTES} are not read."
                )
            return file.read(status.st_size + 1)
    except FileNotFoundError as error:
        raise PosteriorNotFoundError(f"There is no file {_shown(path)}.") from error
    except IsADirectoryError as error:
        raise PosteriorFormatError(f"{_shown(path)} is a folder; a safetensors file was expected.") from error


def _parse_header(data: bytes, path: Path) -> dict[str, Any]:
    """The header as JSON, refused before anything is allocated for it. safetensors itself accepts duplicate and hostile names."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise PosteriorFormatError(
            f"{_shown(path)} is truncated or no safetensors file: its header does not fit in its {len(data)} bytes."
        )
    if length > MAX_HEADER_BYTES:
        raise PosteriorFormatError(f"{_shown(path)} has a header of {length} bytes; more than {MAX_HEADER_BYTES} are not read.")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise PosteriorFormatError(f"{_shown(path)} has a damaged header: {shortened(repr(error))}.") from error
    if not isinstance(header, dict):
        raise PosteriorFormatError(f"{_shown(path)} has a damaged header: it is no JSON object.")
    for name in header:
        if name != "__metadata__" and not _TENSOR_NAME.fullmatch(name):
            raise PosteriorFormatError(
                f"{_shown(path)} has a tensor with the name {shortened(repr(name))}; letters, digits and '_./-' are accepted."
            )
    return header


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands there twice")
    return result


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shown(path: Path) -> str:
    return shortened(repr(str(path)))
