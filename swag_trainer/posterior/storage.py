"""Posterior files: tensors and a JSON document in one safetensors file, with a digest over both.

Knows neither what the tensors mean nor where the Hub is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, shortened
from swag_trainer.posterior.atomic import write_bytes
from swag_trainer.posterior.regular_file import parse_json, shown
from swag_trainer.posterior.tensor_file import check_finite, file_content, read_tensors, tensor_bytes

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
_METADATA_KEY = "swag_trainer"


def content_digest(tensors: Mapping[str, Tensor], document: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every tensor, in the order of the names, and over the document.

    Safetensors files carry no checksum of their own: 2,000 of 2,000 single flipped bits in the data were accepted.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        for piece in tensor_bytes(tensor):
            digest.update(piece)
    if document is not None:
        digest.update(json.dumps(document, sort_keys=True).encode())
    return digest.hexdigest()


def write_file(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> str:
    """Write tensors and a JSON document, with a digest over both, and return that digest.

    Args:
        path: Where; the old file stays until the new one is complete.
        tensors: What; on any device.
        document: JSON values only.
    """
    content, digest = encode(tensors, document)
    write_bytes(path, content)
    return digest


def encode(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> tuple[Iterator[memoryview | bytes], str]:
    """Return the pieces of the file that `write_file` writes, and the digest. The pieces are made one by one as they are asked for."""
    digest = content_digest(tensors, document)
    text = json.dumps({"format_version": FORMAT_VERSION, "digest": digest, "document": document})
    return file_content(tensors, {"format": "pt", _METADATA_KEY: text}), digest


def read_file(path: Path, *, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read what `write_file` wrote and return the tensors, the document and the digest.

    The tensors are views of one copy of the file: a tensor that is kept keeps all of it in memory, unless it is copied. ``mapped`` is as for
    `read_tensors`.

    Raises:
        PosteriorNotFoundError: There is no such file.
        PosteriorFormatError: The file is truncated, edited, of a newer format or was not written by this package.
    """
    tensors, metadata = read_tensors(path, mapped=mapped)
    if _METADATA_KEY not in metadata:
        raise PosteriorFormatError(
            f"{shown(path)} is a safetensors file that swag_trainer did not write: it has no {_METADATA_KEY!r} metadata."
        )
    try:
        envelope = parse_json(metadata[_METADATA_KEY], finite=False)
        version, digest, document = envelope["format_version"], envelope["digest"], envelope["document"]
    except (ValueError, KeyError, TypeError) as error:
        raise PosteriorFormatError(f"{shown(path)} has damaged metadata: {shortened(repr(error))}.") from error
    if version not in READABLE_VERSIONS:
        raise PosteriorFormatError(
            f"{shown(path)} has format version {shortened(repr(version))}, this swag_trainer reads version {FORMAT_VERSION} and older. "
            "Update swag_trainer, or collect again."
        )
    found = content_digest(tensors, document)
    if found != digest:
        raise PosteriorFormatError(
            f"{shown(path)} was changed or damaged after it was written: its content has the digest {found[:12]}..., its metadata "
            f"states {shortened(repr(digest))}. If it came from the Hub, load it again with force_download=True."
        )
    check_finite(tensors, path)
    return tensors, document, digest
