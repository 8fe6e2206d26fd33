"""MeanFieldPosterior: a Gaussian with independent weights, as TFB and variational training give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.base import Draws, StorageDtype, WeightPosterior
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.documents import read_dataclass
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.gaussian import LowRankGaussian, checked_scale
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.packing import pack_vector, unpack_vector
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter


@dataclass(frozen=True, eq=False, repr=False)
class MeanFieldPosterior(WeightPosterior):
    """A Gaussian over an adapter's weights in which all weights are independent.

    Attributes:
        layout: Keys and shapes of the weights.
        vector: The mean. Shape (P,), float32.
        variance: Variance of each weight at scale 1, >= 0. Shape (P,), float32 or bfloat16.
        record: What it belongs to and how it is to be used.
        fit: How it was fitted.
        adapter: The adapter it lies beside, at the mean.
    """

    kind: ClassVar[str] = "mean-field"

    layout: WeightLayout
    vector: Tensor
    variance: Tensor
    record: PosteriorRecord
    fit: FitRecord
    adapter: SavedAdapter

    @property
    def title(self) -> str:
        """Name of the method in capitals, such as TFB."""
        return self.fit.method.upper()

    def mean_vector(self) -> Tensor:
        """Return the mean of the weights. Shape (P,), float32."""
        return self.vector

    def draw(self, num_samples: int, *, seed: int, scale: float | None = None, design: Design = "matched") -> Draws:
        """Draw weight vectors, see `WeightPosterior.draw`. Shape (S, P)."""
        scale = self.scale if scale is None else checked_scale(scale)
        vectors = self._gaussian.sample(num_samples, seed=seed, scale=scale, design=design)
        return Draws(vectors, block_size=1 if design == "iid" or scale == 0 else num_samples)

    def quadratic_form(self, scale: float, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """Return the function J -> J Sigma J^T at a scale, see `GaussianPosterior`."""
        return self._gaussian.quadratic_form(scale, device)

    @property
    def total_variance(self) -> float:
        """Sum of the variances."""
        return self._gaussian.total_variance

    def stored_as(self, dtype: StorageDtype) -> Self:
        """Return it with the variance in bfloat16 or float32; the mean stays in float32."""
        return replace(self, variance=self.variance.bfloat16() if dtype == "bfloat16" else self.variance.float())

    def tensors(self) -> dict[str, Tensor]:
        """Return ``mean/<key>`` in float32 and ``variance/<key>``."""
        variance = {f"variance/{key}": tensor for key, tensor in self.layout.unflatten(self.variance).items()}
        return pack_vector("mean", self.layout, self.vector) | variance

    def metadata(self) -> dict[str, Any]:
        """Return how it was fitted, as JSON values."""
        return asdict(self.fit)

    def summary(self) -> dict[str, Any]:
        """Return how it was fitted."""
        return self.fit.summary()

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
        """Undo `tensors` and `metadata`; nothing about them is trusted.

        Raises:
            PosteriorFormatError: No posterior of this kind can have them.
        """
        fit = read_dataclass(FitRecord, dict(metadata), where=where)
        variances = {name: tensor for name, tensor in tensors.items() if name.startswith("variance/")}
        layout, mean = unpack_vector(
            "mean", {name: tensor for name, tensor in tensors.items() if name not in variances}, where=where
        )
        dtypes = {tensor.dtype for tensor in variances.values()}
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.bfloat16}:
            raise PosteriorFormatError(f"{where} should hold variance/ in float32 or bfloat16.")
        pieces = {name.removeprefix("variance/"): tensor for name, tensor in variances.items()}
        if WeightLayout.of(pieces) != layout or any((tensor < 0).any() for tensor in pieces.values()):
            raise PosteriorFormatError(
                f"{where}: the tensors of variance/ should have the names and shapes of those of mean/, and no negative values."
            )
        variance = torch.cat([pieces[key].reshape(-1) for key in layout.keys])
        return cls(layout, mean, variance, record, fit, adapter)

    @property
    def _gaussian(self) -> LowRankGaussian:
        return LowRankGaussian(self.vector, self.variance.float(), self.vector.new_empty(0, self.layout.size))

    def __repr__(self) -> str:
        """Sizes, never tensors."""
        return (
            f"MeanFieldPosterior({self.title}, {len(self.layout.keys)} weights, P={self.layout.size}, scale={self.scale:g}, "
            f"base_model={self.adapter.base_model!r})"
        )
