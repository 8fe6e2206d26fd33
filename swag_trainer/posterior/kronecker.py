"""KroneckerPosterior: a Gaussian over one linear layer whose precision is a Kronecker product plus a multiple of the identity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.base import Draws, WeightPosterior
from swag_trainer.posterior.design import Design, draw_noise
from swag_trainer.posterior.documents import read_dataclass
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.gaussian import checked_num_samples, checked_scale
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.packing import pack_vector, unpack_vector
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter

_FACTORS = ("left_vectors", "left_values", "right_vectors", "right_values")


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerPosterior(WeightPosterior):
    """A Gaussian over the weight matrix W (C, h) of a layer, with its bias as a last column where it has one:

        precision = G (x) A + tau I,    G (C, C) over the outputs, A (h, h) over the inputs

    With the eigenvectors Q and eigenvalues g, a of G and A a draw is W + Q_G [Z_ij / sqrt(g_i a_j + tau)] Q_A^T.

    Attributes:
        layout: The weight and, if there is one, the bias.
        vector: The mean. Shape (P,), float32.
        left_vectors, left_values: Of G. Shapes (C, C) and (C,), float32.
        right_vectors, right_values: Of A. Shapes (h, h) and (h,), h + 1 with a bias; float32.
        record: What it belongs to and how it is to be used.
        fit: How it was fitted; its setting "prior_precision" is tau.
        adapter: The adapter it lies beside.
    """

    kind: ClassVar[str] = "kronecker"

    layout: WeightLayout
    vector: Tensor
    left_vectors: Tensor
    left_values: Tensor
    right_vectors: Tensor
    right_values: Tensor
    record: PosteriorRecord
    fit: FitRecord
    adapter: SavedAdapter

    @property
    def title(self) -> str:
        """Laplace (head)."""
        return "Laplace (head)" if self.fit.method == "laplace-head" else self.fit.method

    @property
    def prior_precision(self) -> float:
        """tau."""
        return self.fit.settings["prior_precision"]

    def mean_vector(self) -> Tensor:
        """Return the mean of the weights. Shape (P,), float32."""
        return self.vector

    def draw(self, num_samples: int, *, seed: int, scale: float | None = None, design: Design = "matched") -> Draws:
        """Draw weight vectors, see `WeightPosterior.draw`. Shape (S, P)."""
        scale, num_samples = self.scale if scale is None else checked_scale(scale), checked_num_samples(num_samples)
        if scale == 0:
            return Draws(self.vector.expand(num_samples, -1).clone())
        outputs, inputs = len(self.left_values), len(self.right_values)
        noise, _ = draw_noise(num_samples, num_weights=outputs * inputs, rank=0, seed=seed, design=design)
        scaled = noise.view(-1, outputs, inputs) * (scale * self._variances).sqrt().float()
        moved = self.left_vectors @ scaled @ self.right_vectors.T
        return Draws(self.vector + self._flattened(moved), block_size=1 if design == "iid" else num_samples)

    @property
    def total_variance(self) -> float:
        """Sum of the variances of all directions."""
        return float(self._variances.sum())

    def tensors(self) -> dict[str, Tensor]:
        """Return ``mean/<key>`` and the eigenvectors and eigenvalues of both factors, float32."""
        return pack_vector("mean", self.layout, self.vector) | {name: getattr(self, name) for name in _FACTORS}

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
        missing = [name for name in _FACTORS if name not in tensors]
        if missing or not 0 < fit.settings.get("prior_precision", 0) < math.inf:
            raise PosteriorFormatError(f"{where} should hold {', '.join(_FACTORS)}, and a prior_precision > 0.")
        layout, mean = unpack_vector(
            "mean", {name: tensor for name, tensor in tensors.items() if name not in _FACTORS}, where=where
        )
        outputs, inputs = _sizes(layout, where=where)
        shapes = ((outputs, outputs), (outputs,), (inputs, inputs), (inputs,))
        for name, shape in zip(_FACTORS, shapes, strict=True):
            tensor = tensors[name]
            if tensor.dtype != torch.float32 or tensor.shape != shape or (name.endswith("values") and (tensor < 0).any()):
                raise PosteriorFormatError(
                    f"{where}: {name} should be float32 of shape {list(shape)}, without negative eigenvalues."
                )
        return cls(layout, mean, *(tensors[name].clone() for name in _FACTORS), record, fit, adapter)

    @property
    def _variances(self) -> Tensor:
        """Of every direction, at scale 1. Shape (C, h), float64."""
        return 1 / (self.left_values.double()[:, None] * self.right_values.double() + self.prior_precision)

    def _flattened(self, matrices: Tensor) -> Tensor:
        """Bring matrices with the bias as their last column into the order of the layout. Shapes (S, C, h) to (S, P)."""
        pieces = [
            matrices[:, :, -1] if len(shape) == 1 else matrices[:, :, : shape[1]].flatten(1) for shape in self.layout.shapes
        ]
        return torch.cat(pieces, dim=1)

    def __repr__(self) -> str:
        """Sizes, never tensors."""
        return (
            f"KroneckerPosterior({self.title}, {self.layout.keys[-1]!r}, P={self.layout.size}, scale={self.scale:g}, "
            f"prior_precision={self.prior_precision:.3g}, base_model={self.adapter.base_model!r})"
        )


def _sizes(layout: WeightLayout, *, where: str) -> tuple[int, int]:
    """Return C, and h (plus 1 with a bias)."""
    matrices = [shape for shape in layout.shapes if len(shape) == 2]
    biases = [shape for shape in layout.shapes if len(shape) == 1]
    if len(matrices) != 1 or len(matrices) + len(biases) != len(layout.keys) or biases not in ([], [matrices[0][:1]]):
        raise PosteriorFormatError(
            f"{where} should hold one weight matrix and at most its bias, it holds {list(layout.shapes)[:4]}."
        )
    return matrices[0][0], matrices[0][1] + len(biases)
