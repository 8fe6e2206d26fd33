"""KroneckerPosterior: a Gaussian over linear layers whose precision is a Kronecker product for each, plus a multiple of the identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, shortened
from swag_trainer.posterior.base import Draws, WeightPosterior
from swag_trainer.posterior.design import Design, draw_noise
from swag_trainer.posterior.documents import read_dataclass
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.gaussian import checked_num_samples, checked_scale
from swag_trainer.posterior.kronecker_block import KroneckerBlock
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.packing import pack_vector, unpack_vector
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter

_FACTORS = KroneckerBlock._fields
_TITLES = {"laplace-head": "Laplace (head)", "laplace": "Laplace (LoRA)"}


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerPosterior(WeightPosterior):
    """A Gaussian over the weight matrices W (C, h) of linear layers, which are independent; a bias is the last column of its matrix:

        precision of each = G (x) A + tau I,    G (C, C) over the outputs, A (h, h) over the inputs

    Attributes:
        layout: Weights and biases; a bias has the key of its weight, with "bias" in the place of "weight".
        vector: The mean. Shape (P,), float32.
        blocks: G and A of each matrix, in the order of the layout.
        record: What it belongs to and how it is to be used.
        fit: How it was fitted; its setting "prior_precision" is tau, the same for all matrices.
        adapter: The adapter it lies beside.
    """

    kind: ClassVar[str] = "kronecker"

    layout: WeightLayout
    vector: Tensor
    blocks: tuple[KroneckerBlock, ...]
    record: PosteriorRecord
    fit: FitRecord
    adapter: SavedAdapter

    @property
    def title(self) -> str:
        """Laplace (head) or Laplace (LoRA)."""
        return _TITLES.get(self.fit.method, self.fit.method)

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
        vectors = self.vector.expand(num_samples, -1).clone()
        if scale == 0:
            return Draws(vectors)
        noise, _ = draw_noise(num_samples, num_weights=self.layout.size, rank=0, seed=seed, design=design)
        drawn, start = self.layout.unflatten(vectors), 0
        for (weight, bias), block in zip(matrices_of(self.layout).items(), self.blocks, strict=True):
            outputs, inputs = block.shape
            own = noise[:, start : (start := start + outputs * inputs)].reshape(-1, outputs, inputs)
            moved = block.displacement(own, prior_precision=self.prior_precision, scale=scale)
            drawn[weight] += moved[:, :, : drawn[weight].shape[-1]]
            if bias is not None:
                drawn[bias] += moved[:, :, -1]
        return Draws(vectors, block_size=1 if design == "iid" else num_samples)

    def quadratic_form(self, scale: float, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """Return the function J -> J Sigma J^T at a scale, see `GaussianPosterior`; the layers are independent, so it is a sum over them."""
        pairs = list(zip(matrices_of(self.layout).items(), self.blocks, strict=True))

        def form(jacobian: Tensor) -> Tensor:
            parts, total = self.layout.unflatten(jacobian.cpu()), torch.zeros(2 * [len(jacobian)], dtype=torch.float64)
            for (weight, bias), block in pairs:
                own = parts[weight] if bias is None else torch.cat([parts[weight], parts[bias][..., None]], dim=-1)
                total += block.quadratic_form(own, prior_precision=self.prior_precision, scale=scale)
            return total

        return form

    @property
    def total_variance(self) -> float:
        """Sum of the variances of all directions."""
        return sum(block.total_variance(self.prior_precision) for block in self.blocks)

    def tensors(self) -> dict[str, Tensor]:
        """Return ``mean/<key>``, and eigenvectors and eigenvalues of both factors as ``<name>/<key of the weight>``, float32.

        Where there is one matrix, a head, their names are without the key.
        """
        matrices = matrices_of(self.layout)
        factors = {
            name + _suffix(key, matrices): tensor
            for key, block in zip(matrices, self.blocks, strict=True)
            for name, tensor in block._asdict().items()
        }
        return pack_vector("mean", self.layout, self.vector) | factors

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
        factors = {name: tensor for name, tensor in tensors.items() if name.partition("/")[0] in _FACTORS}
        layout, mean = unpack_vector(
            "mean", {name: tensor for name, tensor in tensors.items() if name not in factors}, where=where
        )
        matrices = matrices_of(layout, where=where)
        expected = {name + _suffix(key, matrices) for key in matrices for name in _FACTORS}
        if set(factors) != expected or not 0 < fit.settings.get("prior_precision", 0) < math.inf:
            raise PosteriorFormatError(
                f"{where} should hold {', '.join(_FACTORS)} of each of its {len(matrices)} matrices, and a prior_precision > 0."
            )
        shapes = dict(zip(layout.keys, layout.shapes, strict=True))
        blocks = []
        for key, bias in matrices.items():
            block = KroneckerBlock(*(factors[name + _suffix(key, matrices)].clone() for name in _FACTORS))
            outputs, inputs = shapes[key]
            _check(block, outputs, inputs + (bias is not None), where=f"{where}, {shortened(repr(key))}")
            blocks.append(block)
        return cls(layout, mean, tuple(blocks), record, fit, adapter)

    def __repr__(self) -> str:
        """Sizes, never tensors."""
        names = list(matrices_of(self.layout))
        about = repr(names[0]) if len(names) == 1 else f"{len(names)} matrices"
        return (
            f"KroneckerPosterior({self.title}, {about}, P={self.layout.size}, scale={self.scale:g}, "
            f"prior_precision={self.prior_precision:.3g}, base_model={self.adapter.base_model!r})"
        )


def matrices_of(layout: WeightLayout, *, where: str = "The posterior") -> dict[str, str | None]:
    """Return the key of each weight matrix with that of its bias, or None, in the order of the layout.

    Raises:
        PosteriorFormatError: A weight is neither a matrix nor the bias of one, or there is no matrix.
    """
    shapes = dict(zip(layout.keys, layout.shapes, strict=True))
    matrices: dict[str, str | None] = {}
    for key in (key for key in layout.keys if len(shapes[key]) == 2 and 0 not in shapes[key]):
        bias = key.removesuffix("weight") + "bias"
        is_its_own = shapes.get(bias) == shapes[key][:1] and bias not in matrices.values()
        matrices[key] = bias if is_its_own else None
    other = sorted(set(shapes) - set(matrices) - set(matrices.values()))
    if other or not matrices:
        raise PosteriorFormatError(
            f"{where} should hold weight matrices of linear layers and their biases"
            + (
                f", and {shortened(repr(other[0]))} of shape {list(shapes[other[0]])[:4]} is neither."
                if other
                else ", it holds none."
            )
        )
    return matrices


def _suffix(key: str, matrices: Mapping[str, str | None]) -> str:
    return "" if len(matrices) == 1 else f"/{key}"


def _check(block: KroneckerBlock, outputs: int, inputs: int, *, where: str) -> None:
    """Raise PosteriorFormatError unless the block can be that of a matrix with so many outputs and inputs."""
    for side, size, vectors, values in (
        ("left", outputs, block.left_vectors, block.left_values),
        ("right", inputs, block.right_vectors, block.right_values),
    ):
        if vectors.dtype != torch.float32 or vectors.dim() != 2 or len(vectors) != size or vectors.shape[1] > size:
            raise PosteriorFormatError(f"{where}: {side}_vectors should be float32, at most {size} columns of {size} numbers.")
        if values.dtype != torch.float32 or values.shape != vectors.shape[1:] or (values < 0).any():
            raise PosteriorFormatError(
                f"{where}: {side}_values should be float32, one for each of {vectors.shape[1]} columns of {side}_vectors, and not negative."
            )
