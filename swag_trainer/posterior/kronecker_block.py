"""KroneckerBlock: the precision of one linear layer, a Kronecker product of two factors plus a multiple of the identity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_NEGLIGIBLE = 0.01  # of the prior precision: what a direction left out changes of its variance, at most


class KroneckerBlock(NamedTuple):
    """Eigenvectors and eigenvalues of G (C, C) over the outputs and A (h, h) over the inputs, of the precision G (x) A + tau I.

    A direction that is left out has the eigenvalue 0: its weights have the variance of the prior, 1 / tau.

    Attributes:
        left_vectors, left_values: Of G. Shapes (C, k) and (k,), k <= C, float32.
        right_vectors, right_values: Of A. Shapes (h, l) and (l,), l <= h, float32; h counts the bias where there is one.
    """

    left_vectors: Tensor
    left_values: Tensor
    right_vectors: Tensor
    right_values: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> KroneckerBlock:
        """Return the block of two factors. Shapes (C, C) and (h, h)."""
        (left_values, left_vectors), (right_values, right_vectors) = (
            torch.linalg.eigh(factor.cpu().double()) for factor in (left, right)
        )
        parts = (left_vectors, left_values.clamp_min(0), right_vectors, right_values.clamp_min(0))
        return cls(*(part.float().contiguous() for part in parts))

    @property
    def shape(self) -> tuple[int, int]:
        """C and h."""
        return len(self.left_vectors), len(self.right_vectors)

    @property
    def is_whole(self) -> bool:
        """Whether no direction is left out."""
        return (len(self.left_values), len(self.right_values)) == self.shape

    def without_negligible(self, prior_precision: float) -> KroneckerBlock:
        """Leave out directions in which the data add less than 1 % to the prior precision, whatever the direction on the other side."""
        limit = _NEGLIGIBLE * prior_precision
        left = self.left_values * self.right_values.amax() > limit
        right = self.right_values * self.left_values.amax() > limit
        return KroneckerBlock(
            self.left_vectors[:, left].contiguous(),
            self.left_values[left],
            self.right_vectors[:, right].contiguous(),
            self.right_values[right],
        )

    def variances(self, prior_precision: float) -> Tensor:
        """Return those along the products of kept directions. Shape (k, l), float64."""
        return 1 / (self.left_values.double()[:, None] * self.right_values.double() + prior_precision)

    def total_variance(self, prior_precision: float) -> float:
        """Return the sum of the variances of all directions."""
        kept = self.variances(prior_precision)
        outputs, inputs = self.shape
        return float(kept.sum()) + (outputs * inputs - kept.numel()) / prior_precision

    def displacement(self, noise: Tensor, *, prior_precision: float, scale: float) -> Tensor:
        """Map standard normal noise to steps away from the mean. Shapes (S, C, h).

        With all directions Q_G [Z_ij / sqrt(g_i a_j + tau)] Q_A^T. Where some are left out the symmetric root of the covariance,

            Z / sqrt(tau) + Q_G [(1 / sqrt(g_i a_j + tau) - 1 / sqrt(tau)) (Q_G^T Z Q_A)_ij] Q_A^T

        Args:
            noise: Z.
            prior_precision: tau.
            scale: Factor of the covariance.
        """
        deviations = (scale * self.variances(prior_precision)).sqrt()
        if self.is_whole:
            return self.left_vectors @ (noise * deviations.float()) @ self.right_vectors.T
        rest = (scale / prior_precision) ** 0.5
        coordinates = self.left_vectors.T @ noise @ self.right_vectors
        kept = self.left_vectors @ (coordinates * (deviations - rest).float()) @ self.right_vectors.T
        return kept.add_(noise, alpha=rest)

    def quadratic_form(self, matrices: Tensor, *, prior_precision: float, scale: float) -> Tensor:
        """Return J Sigma J^T for the rows of J as matrices of this layer. Of shape (C, o, h), shape (C, C), float64.

        Args:
            matrices: J.
            prior_precision: tau.
            scale: Factor of the covariance.
        """
        matrices = matrices.double()
        kept = self.left_vectors.T.double() @ matrices @ self.right_vectors.double()
        excess = self.variances(prior_precision) - (0.0 if self.is_whole else 1 / prior_precision)
        form = torch.einsum("ckl,kl,dkl->cd", kept, excess, kept)
        if not self.is_whole:
            form += matrices.flatten(1) @ matrices.flatten(1).T / prior_precision
        return scale * form
