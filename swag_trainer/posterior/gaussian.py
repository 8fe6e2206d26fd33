"""The distribution itself: a Gaussian over flat weight vectors with a diagonal and a low-rank part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swag_trainer.errors import SwagError
from swag_trainer.posterior.design import Design, draw_noise


@dataclass(frozen=True, eq=False)
class LowRankGaussian:
    """The SWAG Gaussian, eq. (1) of Maddox et al. 2019, arXiv:1902.02476:

        N( mean,  diag(variance) / 2  +  D D^T / (2 (K - 1)) ),    D = deviations^T, K = its columns

    Without deviations (K = 0) it is the SWAG-diagonal of the literature, N(mean, diag(variance)), without the one-half.

    Attributes:
        mean: Shape (P,), float32.
        variance: The diagonal variance of the collected vectors, >= 0. Shape (P,), float32.
        deviations: The columns of D as rows, K = 0 or K >= 2. Shape (K, P), float32.
    """

    mean: Tensor
    variance: Tensor
    deviations: Tensor

    def __post_init__(self) -> None:
        size = self.mean.numel()
        shapes = (tuple(self.mean.shape), tuple(self.variance.shape), tuple(self.deviations.shape))
        if shapes != ((size,), (size,), (len(self.deviations), size)) or len(self.deviations) == 1:
            raise ValueError(f"A LowRankGaussian needs shapes (P,), (P,) and (K, P) with K = 0 or K >= 2, got {shapes}.")

    @property
    def rank(self) -> int:
        """K, the number of deviations that were kept."""
        return len(self.deviations)

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
        low_rank = z2 @ self.deviations.to(z2.dtype) / (2 * (self.rank - 1)) ** 0.5
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
