"""A Gaussian over a layout <-> the tensors of its file: ``mean/<key>``, ``variance/<key>`` and ``deviations/<key>``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout


def pack_vector(part: str, layout: WeightLayout, vector: Tensor) -> dict[str, Tensor]:
    """Return ``<part>/<key>`` for the pieces of a vector. Shape (P,)."""
    return {f"{part}/{key}": tensor for key, tensor in layout.unflatten(vector).items()}


def unpack_vector(part: str, tensors: Mapping[str, Tensor], *, where: str) -> tuple[WeightLayout, Tensor]:
    """Undo `pack_vector`; nothing about the tensors is taken for granted.

    Raises:
        PosteriorFormatError: A tensor of another name or dtype, or none.
    """
    pieces: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found, _, key = name.partition("/")
        if found != part or tensor.dtype != torch.float32:
            raise PosteriorFormatError(
                f"{where} has a tensor {name[:200]!r} in {tensor.dtype}; {part}/ in float32 was expected."
            )
        pieces[key] = tensor
    if not pieces:
        raise PosteriorFormatError(f"{where} has no weights.")
    layout = WeightLayout.of(pieces)
    return layout, layout.flatten(pieces)


_PARTS = ("mean", "variance", "deviations")


def pack(layout: WeightLayout, gaussian: LowRankGaussian) -> dict[str, Tensor]:
    """Return the tensors to store: (*shape) for mean and variance, (K, *shape) for the deviations, all float32."""
    flat = {"mean": gaussian.mean, "variance": gaussian.variance, "deviations": gaussian.deviations}
    return {f"{part}/{key}": tensor for part in _PARTS for key, tensor in layout.unflatten(flat[part]).items()}


def unpack(tensors: Mapping[str, Tensor], *, num_collected: int, where: str) -> tuple[WeightLayout, LowRankGaussian]:
    """Undo `pack`; nothing about the tensors is taken for granted.

    Args:
        tensors: What the file holds.
        num_collected: How many vectors it says were collected; there cannot be more deviations.
        where: The file's name, for errors.

    Raises:
        PosteriorFormatError: Names, shapes, dtypes or values that no posterior can have.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        if part not in parts:
            raise PosteriorFormatError(f"{where} has a tensor {name[:200]!r}; mean/, variance/ and deviations/ were expected.")
        if tensor.dtype != torch.float32:
            raise PosteriorFormatError(f"{where}: {name!r} is {tensor.dtype}; a posterior is kept in float32.")
        parts[part][key] = tensor
    layout = WeightLayout.of(parts["mean"])
    rank = next((len(tensor) for tensor in parts["deviations"].values() if tensor.dim()), 0)
    rows = WeightLayout(layout.keys, tuple((rank, *shape) for shape in layout.shapes))
    for part, expected in (("variance", layout), ("deviations", rows)):
        if WeightLayout.of(parts[part]) != expected:
            raise PosteriorFormatError(
                f"{where}: the tensors of {part}/ do not have the names and shapes that those of mean/ ask for."
            )
    negative = next((key for key, tensor in parts["variance"].items() if (tensor < 0).any()), None)
    if negative is not None:
        raise PosteriorFormatError(f"{where}: the variance of {negative!r} has negative values.")
    if rank == 1 or rank > num_collected or not layout.keys:
        raise PosteriorFormatError(
            f"{where} has {len(layout.keys)} weights and {rank} deviations from {num_collected} collections."
        )
    deviations = torch.cat(
        [parts["deviations"][key].reshape(rank, size) for key, size in zip(layout.keys, layout.sizes, strict=True)], dim=1
    )
    return layout, LowRankGaussian(layout.flatten(parts["mean"]), layout.flatten(parts["variance"]), deviations)
