"""PointPosterior: all probability on one weight vector (SWA, MAP, the last snapshot)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.base import Draws, WeightPosterior
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.gaussian import checked_num_samples, checked_scale
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.packing import pack_vector, unpack_vector
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter


@dataclass(frozen=True, eq=False)
class PointPosterior(WeightPosterior):
    """A point estimate with the interface of a posterior: every draw is the same weight vector.

    Attributes:
        layout: Keys and shapes of the weights.
        vector: The weights. Shape (P,), float32.
        record: Its scale is 0, so that predictors make a single pass.
        adapter: The adapter it lies beside.
    """

    kind: ClassVar[str] = "point"

    layout: WeightLayout
    vector: Tensor
    record: PosteriorRecord
    adapter: SavedAdapter

    @classmethod
    def at(cls, vector: Tensor, posterior: WeightPosterior) -> PointPosterior:
        """Return the point estimate at a weight vector of another posterior's adapter; that posterior's tuning and features are not taken over.

        Args:
            vector: Shape (P,).
            posterior: Whose layout, record and adapter to take.
        """
        return cls(
            posterior.layout,
            vector.float(),
            replace(posterior.record, scale=0.0, tuning=None, features=None),
            posterior.adapter,
        )

    @property
    def is_point(self) -> bool:
        """True."""
        return True

    def mean_vector(self) -> Tensor:
        """Return the weights. Shape (P,), float32."""
        return self.vector

    def draw(self, num_samples: int, *, seed: int = 0, scale: float | None = None, design: Design = "matched") -> Draws:
        """Return the weights ``num_samples`` times; seed, scale and design change nothing. Shape (S, P)."""
        checked_scale(0.0 if scale is None else scale)
        return Draws(self.vector.expand(checked_num_samples(num_samples), -1).clone())

    def tensors(self) -> dict[str, Tensor]:
        """Return ``mean/<key>``, float32."""
        return pack_vector("mean", self.layout, self.vector)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        record: PosteriorRecord,
        adapter: SavedAdapter,
        metadata: Mapping[str, Any],
        *,
        where: str,
    ) -> Self:
        """Undo `tensors`.

        Raises:
            PosteriorFormatError: A tensor of another name, dtype or shape, or metadata, which a point estimate has none of.
        """
        if metadata:
            raise PosteriorFormatError(
                f"{where} states {sorted(metadata)} of a point estimate, which has no metadata of its own."
            )
        layout, vector = unpack_vector("mean", tensors, where=where)
        return cls(layout, vector, record, adapter)

    def reparametrised(
        self,
        layout: WeightLayout,
        record: PosteriorRecord,
        adapter: SavedAdapter,
        *,
        position: Callable[[Tensor], Tensor],
        displacement: Callable[[Tensor], Tensor],
    ) -> Self:
        """Carry the weights over to another parametrisation, see `WeightPosterior.reparametrised`."""
        return type(self)(layout, position(self.vector), record, adapter)

    def __repr__(self) -> str:
        """Sizes, never tensors."""
        return f"PointPosterior({len(self.layout.keys)} weights, P={self.layout.size}, base_model={self.adapter.base_model!r})"
