"""Gaussian over flat weight vectors with a diagonal and a low-rank covariance, eq. (1) of Maddox et al. 2019."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from swag_trainer.errors import SwagError
from swag_trainer.posterior.design import Design, draw_noise

_BLOCK = 2**16


@dataclass(frozen=True, eq=False)
class LowRankGaussian:
    """The SWAG Gaussian, eq. (1) of Maddox et al. 2019, arXiv:1902.02476:

        N( mean,  diag(variance) / 2  +  D D^T / (2 (K - 1)) ),    D = deviations^T, K = its columns

    Without deviations (K = 0) it is the SWAG-diagonal of the literature, N(mean, diag(variance)), without the one-half.

    Attributes:
        mean: Shape (P,), float32.
        variance: The diagonal variance of the collected vectors, >= 0. Shape (P,), float32.
        directions: The columns of D as rows, K = 0 or K >= 2. Shape (K, P), float32. With a rotation, r <= K directions that the
            rotation turns into them. Shape (r, P), bfloat16 or float32.
        rotation: None, or the matrix R with D^T = R directions. Shape (K, r), float32.
    """

    mean: Tensor
    variance: Tensor
    directions: Tensor
    rotation: Tensor | None = None

    def __post_init__(self) -> None:
        size = self.mean.numel()
        shapes = [tuple(tensor.shape) for tensor in (self.mean, self.variance, self.directions)]
        if shapes != [(size,), (size,), (len(self.directions), size)] or self.rank == 1:
            raise ValueError(f"A LowRankGaussian needs shapes (P,), (P,) and (K, P) with K = 0 or K >= 2, got {shapes}.")
        if self.rotation is not None and self.rotation.shape != (self.rank, len(self.directions)):
            raise ValueError(f"{len(self.directions)} directions need a rotation (K, r), got {tuple(self.rotation.shape)}.")

    @property
    def rank(self) -> int:
        """K, the number of deviations that were kept."""
        return len(self.directions if self.rotation is None else self.rotation)

    @cached_property
    def deviations(self) -> Tensor:
        """The columns of D as rows; with a rotation they are computed when first asked for. Shape (K, P), float32."""
        if self.rotation is None:
            return self.directions
        return _times_directions(self.rotation, self.directions)

    def deviation(self, index: int) -> Tensor:
        """Return one deviation, without computing the others. Shape (P,), float32."""
        if self.rotation is None:
            return self.directions[index]
        return _times_directions(self.rotation[index][None], self.directions)[0]

    def combination(self, coefficients: Tensor) -> Tensor:
        """Return the sum of the deviations times a number each, without computing them. Shapes (K,) to (P,), float32."""
        coordinates = coefficients.float() if self.rotation is None else coefficients.float() @ self.rotation
        return _times_directions(coordinates[None], self.directions)[0]

    @cached_property
    def total_variance(self) -> float:
        """Trace of the covariance at scale 1: the expected squared distance of a draw from the mean."""
        diagonal = float(self.variance.double().sum())
        if self.rank == 0:
            return diagonal
        gram = torch.zeros(len(self.directions), len(self.directions), dtype=torch.float64)
        for block in _blocks(self.directions.shape[1]):
            columns = self.directions[:, block].double()
            gram.addmm_(columns, columns.T)
        if self.rotation is not None:
            gram = self.rotation.double() @ gram @ self.rotation.double().T
        return diagonal / 2 + float(gram.trace()) / (2 * (self.rank - 1))

    def displacement(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Map standard normal noise to a step away from the mean.

        The sampling identity below eq. (1) of Maddox et al. 2019:

            sqrt(variance / 2) * z1  +  deviations^T z2 / sqrt(2 (K - 1))

        One ``z2`` serves every weight; it is what correlates weights across layers. With K = 0 it is sqrt(variance) * z1.

        Args:
            z1: One coordinate per weight. Shape (S, P).
            z2: One coordinate per direction. Shape (S, K).

        Returns:
            The steps, in the dtype of the noise. Shape (S, P).
        """
        variance = self.variance.to(z1.dtype)
        if self.rank == 0:
            return variance.sqrt() * z1
        if self.rotation is None:
            low_rank = z2 @ self.directions.to(z2.dtype) / (2 * (self.rank - 1)) ** 0.5
        else:
            low_rank = _times_directions(z2 @ self.rotation.to(z2.dtype) / (2 * (self.rank - 1)) ** 0.5, self.directions)
        return torch.addcmul(low_rank, (variance / 2).sqrt(), z1)

    def factors(self, scale: float) -> tuple[Tensor, Tensor]:
        """Return d and L of the covariance diag(d) + L^T L at a scale, eq. (1) of Maddox et al. 2019.

        Args:
            scale: Factor of the covariance, >= 0.

        Returns:
            Shapes (P,) and (K, P), float32.
        """
        if self.rank == 0:
            return self.variance * scale, self.deviations
        return self.variance * (scale / 2), self.deviations * (scale / (2 * (self.rank - 1))) ** 0.5

    def quadratic_form(self, scale: float, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """Return the function J -> J Sigma J^T at a scale, see `GaussianPosterior`."""
        diagonal, directions = (factor.to(device) for factor in self.factors(scale))

        def form(jacobian: Tensor) -> Tensor:
            projected = (jacobian @ directions.T).cpu().double()
            return ((jacobian * diagonal) @ jacobian.T).cpu().double() + projected @ projected.T

        return form

    def sample(self, num_samples: int, *, seed: int, scale: float = 1.0, design: Design = "matched") -> Tensor:
        """Draw weight vectors.

        Args:
            num_samples: S, at least 1.
            seed: The draws depend on this number alone, not on any global random state.
            scale: Factor of the *covariance*, >= 0. At 0 every draw is the mean (SWA).
            design: How the S noise vectors relate to each other, see `draw_noise`.

        Returns:
            The draws. Shape (S, P), float32, on the CPU.

        Raises:
            SwagError: ``num_samples`` or ``scale`` is out of range.
        """
        checked_num_samples(num_samples)
        if checked_scale(scale) == 0:
            return self.mean.expand(num_samples, -1).clone()
        z1, z2 = draw_noise(num_samples, num_weights=self.mean.numel(), rank=self.rank, seed=seed, design=design)
        return self.displacement(z1, z2).mul_(scale**0.5).add_(self.mean)


def _times_directions(coordinates: Tensor, directions: Tensor) -> Tensor:
    """Multiply (S, r) by (r, P) in the dtype of the former; the latter is converted a block of columns at a time. Shape (S, P)."""
    product = torch.empty(len(coordinates), directions.shape[1], dtype=coordinates.dtype)
    for block in _blocks(directions.shape[1]):
        product[:, block] = coordinates @ directions[:, block].to(coordinates.dtype)
    return product


def _blocks(size: int) -> Iterator[slice]:
    for start in range(0, size, _BLOCK):
        yield slice(start, start + _BLOCK)


def checked_num_samples(num_samples: int) -> int:
    """Return ``num_samples``.

    Raises:
        SwagError: It is below 1.
    """
    if num_samples < 1:
        raise SwagError(
            f"num_samples is the number of draws and must be at least 1, got {num_samples}. For the mean alone pass scale=0."
        )
    return num_samples


def checked_scale(scale: float) -> float:
    """Return ``scale`` as a float.

    Raises:
        SwagError: It is negative or not finite.
    """
    if not 0 <= scale < float("inf"):
        raise SwagError(f"scale is a factor of the covariance and must be finite and >= 0, got {scale}.")
    return float(scale)
