"""Posteriors inside another: members of a mixture, parts of a combination. What each is in memory and in the file, and what it counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, SwagError, shortened
from swag_trainer.posterior.base import KINDS, STORAGE, WeightPosterior
from swag_trainer.posterior.gaussian import checked_scale
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter

MIXTURE = "mixture"


def at_mean(posterior: WeightPosterior) -> WeightPosterior:
    """Return a posterior with its adapter at its mean, and without what depends on how it was used alone."""
    adapter = posterior.adapter.with_weights(posterior.mean)
    record = replace(posterior.record, tuning=None, features=None, adapter_digest=None)
    return replace(posterior, adapter=adapter, record=record)


def checked_weights(weights: Any, count: int) -> tuple[float, ...]:
    """Return weights that sum to 1.

    Args:
        weights: "uniform", or what each member counts.
        count: How many members there are.

    Raises:
        SwagError: They are not as many numbers >= 0.
    """
    if isinstance(weights, str) and weights == "uniform":
        return (1 / count,) * count
    is_numbers = isinstance(weights, Sequence) and all(isinstance(each, (int, float)) for each in weights)
    if (
        not is_numbers
        or len(weights) != count
        or not all(0 <= each < math.inf for each in weights)
        or not 0 < sum(weights) < math.inf
    ):
        raise SwagError(
            f'weights must be "uniform" or {count} numbers >= 0, one for each member, got {shortened(repr(weights))}.'
        )
    total = math.fsum(weights)
    return tuple(map(float, weights)) if abs(total - 1) < 1e-12 else tuple(float(each) / total for each in weights)


def describe_member(member: WeightPosterior) -> tuple[dict[str, Any], Any]:
    """Return what a file states of a member beside its tensors: the description and the storage that `read_member` takes."""
    metadata = dict(member.metadata())
    storage = metadata.pop(STORAGE, None)
    return {"kind": member.kind, "scale": member.scale, "metadata": metadata}, storage


def tensors_by_member(
    tensors: Mapping[str, Tensor], names: Iterable[str], *, owners: str, where: str
) -> dict[str, dict[str, Tensor]]:
    """Divide the tensors of a file by the first part of their names, which it takes off.

    Args:
        tensors: ``<member>/<name>``.
        names: Of the members.
        owners: What an error says that a tensor belongs to otherwise, such as "neither body nor head".
        where: The file, for errors.

    Raises:
        PosteriorFormatError: A tensor belongs to no member.
    """
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for name, tensor in tensors.items():
        member, _, own = name.partition("/")
        if member not in parts:
            raise PosteriorFormatError(f"{where} has a tensor {shortened(repr(name))}, which belongs to {owners}.")
        parts[member][own] = tensor
    return parts


def read_member(
    description: Any,
    tensors: Mapping[str, Tensor],
    record: PosteriorRecord,
    adapter: SavedAdapter,
    storage: Any,
    *,
    where: str,
) -> WeightPosterior:
    """Read one member of a mixture; nothing about it is trusted.

    Args:
        description: What the file states of it: kind, scale and metadata.
        tensors: The member's own.
        record, adapter: Of the mixture.
        storage: What the member's metadata state about the precision of the file, None where nothing.
        where: The file and the member, for errors.

    Raises:
        PosteriorFormatError: No member of a mixture can be so.
    """
    if not isinstance(description, dict) or set(description) != {"kind", "scale", "metadata"}:
        raise PosteriorFormatError(f"{where} should state kind, scale and metadata.")
    kind = KINDS.get(description["kind"]) if isinstance(description["kind"], str) else None
    scale, metadata = description["scale"], description["metadata"]
    if kind is None or kind.kind == MIXTURE:
        raise PosteriorFormatError(
            f"{where} is a posterior of kind {shortened(repr(description['kind']))}, which cannot be read as a member."
        )
    if not isinstance(metadata, dict) or isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise PosteriorFormatError(f"{where} should state kind, scale and metadata.")
    try:
        checked = checked_scale(float(scale))
    except SwagError as error:
        raise PosteriorFormatError(f"{where}: {error}") from error
    if storage is not None:
        metadata = {**metadata, STORAGE: storage}
    own = replace(record, scale=checked, tuning=None, features=None, adapter_digest=None)
    member = kind.from_tensors(tensors, own, adapter, metadata, where=where)
    # Weights that the adapter does not have are an error of whoever pairs the two.
    return at_mean(member) if adapter.tensors.keys() >= set(member.layout.keys) else member
