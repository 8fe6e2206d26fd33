"""File format of the running moments in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from swag_trainer.errors import AdapterMismatchError, PosteriorFormatError
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.moments import RunningMoments
from swag_trainer.posterior.storage import read_file, write_file


def write_moments(path: Path, layout: WeightLayout, moments: RunningMoments, metadata: Mapping[str, Any]) -> str:
    """Write moments to a file, whole or not at all, and return its content digest.

    Args:
        path: Where.
        layout: Of the weights.
        moments: The moments.
        metadata: JSON values of the collection, for `read_moments` to return.
    """
    for leftover in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    document = {
        "keys": list(layout.keys),
        "shapes": [list(shape) for shape in layout.shapes],
        "rank": moments.rank,
        "count": moments.count,
        **metadata,
    }
    return write_file(path, moments.tensors(), document)


def read_moments(
    path: Path, *, digest: str, layout: WeightLayout, rank: int, device: torch.device
) -> tuple[RunningMoments, Mapping[str, Any]]:
    """Read what `write_moments` wrote: the moments and the metadata.

    Args:
        path: The file.
        digest: What `write_moments` returned.
        layout, rank: What the moments must be of.
        device: Where the moments are to live.

    Raises:
        PosteriorFormatError: The file is damaged, or its digest is another one.
        AdapterMismatchError: The moments are of another adapter, or of another rank.
    """
    tensors, document, found = read_file(path)
    if found != digest:
        raise PosteriorFormatError(f"{str(path)!r} has the digest {found[:12]}, the checkpoint's record says {digest[:12]}.")
    try:
        stored = WeightLayout(tuple(document["keys"]), tuple(tuple(shape) for shape in document["shapes"]))
        count, stored_rank = int(document["count"]), int(document["rank"])
        difference = stored.difference(layout, ours="The checkpoint", theirs="The model")
        if difference:
            raise AdapterMismatchError(f"The moments in {str(path)!r} are of another adapter. {difference}")
        if stored_rank != rank:
            raise AdapterMismatchError(f"The moments in {str(path)!r} have rank={stored_rank}, this run has rank={rank}.")
        return RunningMoments.from_tensors(tensors, count=count, rank=rank, device=device), document
    except (KeyError, TypeError, ValueError) as error:
        raise PosteriorFormatError(f"{str(path)!r} does not hold the moments of a collection: {error!r}.") from error
