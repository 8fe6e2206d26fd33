"""Which weights a posterior is about, in which order: the one place where names turn into positions of a flat vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightLayout:
    """The weights of one adapter as consecutive pieces of one vector of P numbers.

    Attributes:
        keys: The weights' names as the adapter's own file spells them, sorted.
        shapes: Their shapes, in the same order.
    """

    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> WeightLayout:
        """Return the layout of ``weights``; the order of the mapping does not matter."""
        keys = tuple(sorted(weights))
        return cls(keys, tuple(tuple(weights[key].shape) for key in keys))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers each weight has."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """P, how many numbers all weights have together."""
        return sum(self.sizes)

    def flatten(self, weights: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """Write the weights one after the other into a vector.

        Args:
            weights: A tensor for each key, of any floating dtype and device.
            out: Where to write. Shape (P,), float32, contiguous. A new vector by default.

        Returns:
            The vector. Shape (P,), float32.
        """
        if out is None:
            out = torch.empty(self.size, dtype=torch.float32)
        torch._foreach_copy_(list(self.unflatten(out).values()), [weights[key].detach() for key in self.keys])
        return out

    def unflatten(self, vectors: Tensor) -> dict[str, Tensor]:
        """Cut vectors into weights, without copying.

        Args:
            vectors: One vector or a stack of them. Shape (..., P).

        Returns:
            A view for each key. Shape (..., *shape of the weight).
        """
        pieces = vectors.split(self.sizes, dim=-1)
        batch = vectors.shape[:-1]
        return {key: piece.view((*batch, *shape)) for key, piece, shape in zip(self.keys, pieces, self.shapes, strict=True)}

    def difference(self, other: WeightLayout, *, ours: str, theirs: str) -> str | None:
        """Say in a sentence how two layouts differ, or return None where they are the same.

        Args:
            other: The layout to compare with.
            ours: What to call this layout in the sentence, "The posterior".
            theirs: What to call the other one, "the adapter".
        """
        if self == other:
            return None
        for first, second, first_name, second_name in ((self, other, ours, theirs), (other, self, theirs, ours)):
            only_first = sorted(set(first.keys) - set(second.keys))
            if only_first:
                return (
                    f"{ours} has {len(self.keys)} weights, {theirs} {len(other.keys)}. "
                    f"The first that {second_name.lower()} lacks and {first_name.lower()} has is {only_first[0]!r}."
                )
        for key, shape, other_shape in zip(self.keys, self.shapes, other.shapes, strict=True):
            if shape != other_shape:
                return f"The weight {key!r} has the shape {list(shape)} in {ours.lower()}, {list(other_shape)} in {theirs.lower()}."
        return None
