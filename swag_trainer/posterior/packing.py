"""Tensors of a posterior's file: vectors and Gaussians over a weight layout, to ``<part>/<key>`` and back.

A Gaussian in float32 has mean/, variance/ and deviations/, a compressed one mean/, variance/, directions/ and the tensor "rotation".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, shortened
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout


def pack_vector(part: str, layout: WeightLayout, vector: Tensor) -> dict[str, Tensor]:
    """Return ``<part>/<key>`` for the pieces of a vector. Shape (P,)."""
    return {f"{part}/{key}": tensor for key, tensor in layout.unflatten(vector).items()}


def unpack_vector(part: str, tensors: Mapping[str, Tensor], *, where: str) -> tuple[WeightLayout, Tensor]:
    """Undo `pack_vector`; nothing about the tensors is trusted.

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


ROTATION = "rotation"
_PLAIN = {"mean": torch.float32, "variance": torch.float32, "deviations": torch.float32}
_COMPRESSED = {"mean": torch.float32, "variance": torch.bfloat16, "directions": torch.bfloat16}


def pack(layout: WeightLayout, gaussian: LowRankGaussian) -> dict[str, Tensor]:
    """Return the tensors to store.

    Returns:
        Without a rotation ``mean/<key>`` and ``variance/<key>`` of shape (*shape) and ``deviations/<key>`` of shape (K, *shape), all
        float32. With one, ``variance/<key>`` and ``directions/<key>`` of shape (r, *shape) in bfloat16, and ``rotation`` of shape
        (K, r) in float32.
    """
    vectors = (gaussian.mean, gaussian.variance, gaussian.directions)
    dtypes = _PLAIN if gaussian.rotation is None else _COMPRESSED
    tensors: dict[str, Tensor] = {}
    for (part, dtype), vector in zip(dtypes.items(), vectors, strict=True):
        tensors |= pack_vector(part, layout, vector.to(dtype))
    return tensors if gaussian.rotation is None else tensors | {ROTATION: gaussian.rotation}


def unpack(tensors: Mapping[str, Tensor], *, num_collected: int, where: str) -> tuple[WeightLayout, LowRankGaussian]:
    """Undo `pack`; nothing about the tensors is trusted.

    Args:
        tensors: What the file holds.
        num_collected: How many vectors it says were collected; there cannot be more deviations.
        where: The file's name, for errors.

    Raises:
        PosteriorFormatError: Names, shapes, dtypes or values that no posterior can have.
    """
    rotation = tensors.get(ROTATION)
    dtypes = _PLAIN if rotation is None else _COMPRESSED
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in dtypes}
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        if name == ROTATION:
            continue
        if part not in parts:
            raise PosteriorFormatError(f"{where} has a tensor {shortened(repr(name))}; {'/, '.join(parts)}/ were expected.")
        if tensor.dtype != dtypes[part]:
            raise PosteriorFormatError(f"{where}: {shortened(repr(name))} is {tensor.dtype}; {dtypes[part]} was expected.")
        parts[part][key] = tensor
    low_rank = "deviations" if rotation is None else "directions"
    layout = WeightLayout.of(parts["mean"])
    num_rows = next((len(tensor) for tensor in parts[low_rank].values() if tensor.dim()), 0)
    rows = WeightLayout(layout.keys, tuple((num_rows, *shape) for shape in layout.shapes))
    for part, expected in (("variance", layout), (low_rank, rows)):
        if WeightLayout.of(parts[part]) != expected:
            raise PosteriorFormatError(
                f"{where}: the tensors of {part}/ do not have the names and shapes that those of mean/ ask for."
            )
    if rotation is not None and (
        rotation.dtype != torch.float32 or rotation.dim() != 2 or rotation.shape[1] != num_rows or num_rows > len(rotation)
    ):
        raise PosteriorFormatError(
            f"{where}: the rotation is {rotation.dtype} of shape {list(rotation.shape)[:4]}; float32 of shape [K, {num_rows}] was "
            "expected."
        )
    negative = next((key for key, tensor in parts["variance"].items() if (tensor < 0).any()), None)
    if negative is not None:
        raise PosteriorFormatError(f"{where}: the variance of {shortened(repr(negative))} has negative values.")
    rank = num_rows if rotation is None else len(rotation)
    if rank == 1 or rank > num_collected or not layout.keys:
        raise PosteriorFormatError(
            f"{where} has {len(layout.keys)} weights and {rank} deviations from {num_collected} collections."
        )
    pieces = [parts[low_rank][key].reshape(num_rows, size) for key, size in zip(layout.keys, layout.sizes, strict=True)]
    return layout, LowRankGaussian(
        layout.flatten(parts["mean"]),
        layout.flatten(parts["variance"]),
        torch.cat(pieces, dim=1),
        None if rotation is None else rotation.clone(),  # not a view that keeps the whole file in memory
    )
