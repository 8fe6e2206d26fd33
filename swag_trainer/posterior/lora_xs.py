"""LoRA-XS: a small trained core between two fixed matrices from the singular value decomposition of the base weight.

Balazy et al. 2024, arXiv:2405.17604; Bayesian in Marszalek et al. 2025, arXiv:2502.12122:  W + s (U S) R V^T, with r singular values S and
vectors U and V of W;  only R (r, r) trains. In LoRA's own terms A = V^T is fixed and B = (U S) R.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, SwagError
from swag_trainer.posterior.coefficient_map import Beginning, CoefficientMap, LoraPair
from swag_trainer.posterior.layout import WeightLayout

_STD = 1e-5
_ITERATIONS = 8


@dataclass(frozen=True, eq=False)
class LoraXsMap(CoefficientMap):
    """A matrix B is a fixed matrix times a trained core.

    Attributes:
        layout: Keys and shapes of the matrices B.
        bases: U S of each, by key. They travel in the posterior's file: a decomposition has other signs and last bits on another machine.
            Shapes (out, r), float32.
    """

    kind: ClassVar[str] = "lora-xs"
    title: ClassVar[str] = "LoRA-XS"

    layout: WeightLayout
    bases: Mapping[str, Tensor]

    def basis(self, key: str) -> Tensor:
        """Return U S. Shape (out, r)."""
        return self.bases[key]

    @staticmethod
    def combine(coefficients: Tensor, basis: Tensor) -> Tensor:
        """Return the product. Shapes (..., r, r) and (out, r) to (..., out, r)."""
        return basis @ coefficients

    def coefficient_shape(self, key: str) -> tuple[int, ...]:
        """Return (r, r)."""
        rank = self.bases[key].shape[1]
        return (rank, rank)

    def settings(self) -> dict[str, Any]:
        """Return nothing: the bases are stored."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the bases by key."""
        return dict(self.bases)

    @classmethod
    def from_settings(cls, layout: WeightLayout, settings: Any, tensors: Mapping[str, Tensor], *, where: str) -> Self:
        """Undo `tensors`; nothing about them is trusted.

        Raises:
            PosteriorFormatError: They are not so.
        """
        floats = all(tensor.dtype == torch.float32 and tensor.dim() == 2 for tensor in tensors.values())
        if settings != {} or not floats or WeightLayout.of(tensors) != layout:
            raise PosteriorFormatError(
                f"{where} should hold one basis in float32, of its shape, for each matrix B that has a core."
            )
        return cls(layout, {key: tensor.clone() for key, tensor in tensors.items()})


@dataclass(frozen=True)
class LoraXs:
    """Settings of LoRA-XS for `swag_trainer.train_coefficients`: none. The core is as large as the rank of the LoRA config, r x r a layer."""

    def begin(self, pairs: list[LoraPair]) -> Beginning:
        """Return cores of standard deviation 1e-5, as published, and A = V^T.

        Raises:
            SwagError: A base weight is smaller than the rank.
        """
        bases, cores, fixed = {}, {}, {}
        with torch.random.fork_rng():  # no random number of the run is used up
            torch.manual_seed(0)
            for pair in pairs:
                rank, base = len(pair.a), pair.base().float()
                if rank > min(base.shape):
                    raise SwagError(
                        f"LoRA-XS takes r={rank} singular vectors of a base weight, and that of {pair.key_b!r} has {min(base.shape)}."
                    )
                left, values, right = torch.svd_lowrank(base, q=min(2 * rank, *base.shape), niter=_ITERATIONS)
                bases[pair.key_b] = (left[:, :rank] * values[:rank]).cpu().contiguous()
                fixed[pair.key_a] = right[:, :rank].T.cpu().contiguous()
                cores[pair.key_b] = torch.randn(rank, rank) * _STD
        return Beginning(LoraXsMap(WeightLayout.of({pair.key_b: pair.b for pair in pairs}), bases), cores, fixed)
