"""Mahalanobis distance to the nearest class, for out-of-distribution (OOD) detection: class means and a shared covariance of features.

Knows numbers only: which features of a model these are, `swag_trainer.tasks` determines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, SwagError, shortened

PREFIX = "ood/"
FULL_RANK = 1024
LOW_RANK = 256
MAX_SIZE = 2**20  # classes, dimensions or held-out distances that a file may have
_DTYPES = {
    "means": torch.float32,
    "directions": torch.float32,
    "variances": torch.float32,
    "residual": torch.float32,
    "held_out": torch.float64,
    "cross_fitted": torch.uint8,
}


@dataclass(frozen=True, eq=False)
class FeatureDistribution:
    """Gaussians of one covariance around the mean of each class, and the distances of held-out examples.

    The covariance has ``variances`` along ``directions`` and ``residual`` along everything orthogonal to them.

    Attributes:
        means: Of each class that had examples. Shape (C, h), float32.
        directions: Orthonormal rows. Shape (r, h), float32.
        variances: Along each direction, > 0. Shape (r,), float32.
        residual: Variance along all other directions, > 0.
        held_out: Distances of examples that nothing was trained on, ascending; empty where there were none, and then there is no
            score. Shape (n,), float64.
        cross_fitted: Whether the distribution was fitted to the held-out examples, and each distance comes from a fit without the
            example; else it was fitted to training examples.
    """

    means: Tensor
    directions: Tensor
    variances: Tensor
    residual: float
    held_out: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    cross_fitted: bool = False

    @property
    def num_held_out(self) -> int:
        """How many held-out distances there are."""
        return len(self.held_out)

    @property
    def highest_level(self) -> float:
        """The highest score that a threshold can be set at: n / (n + 1)."""
        return self.num_held_out / (self.num_held_out + 1)

    def distance(self, features: ArrayLike | Tensor) -> np.ndarray:
        """Return the Mahalanobis distance to the nearest class mean (Lee et al. 2018, arXiv:1807.03888, eq. 2).

        Args:
            features: Shape (N, h).

        Returns:
            Shape (N,), float64, >= 0.

        Raises:
            SwagError: The features have another number of dimensions.
        """
        features = torch.as_tensor(features).double()
        if features.dim() != 2 or features.shape[1] != self.means.shape[1]:
            raise SwagError(
                f"The OOD score was fitted on features of {self.means.shape[1]} dimensions, got a tensor of shape "
                f"{tuple(features.shape)}. Is this the model that it was fitted for?"
            )
        whitened, means = self._whitened(features), self._whitened(self.means.double())
        # Not through matrix products, whose cancellation is large where two means are close to each other.
        return torch.cdist(whitened, means, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1).numpy()

    def score(self, features: ArrayLike | Tensor) -> np.ndarray:
        """Return how far out features lie, as a fraction of held-out examples, so that a threshold has a meaning.

        Of n held-out distances k are smaller: the score is k / (n + 1), 1 less a conformal p-value (Bates et al. 2023,
        arXiv:2104.08279). A held-out example has a score of t or more with a probability of at most 1 - t, for every t up to `highest_level`.
        Beyond the largest held-out distance d_n the score still rises: (n + 1 - d_n / d) / (n + 1).

        Args:
            features: Shape (N, h).

        Returns:
            Shape (N,), float64, in [0, 1).

        Raises:
            SwagError: There are no held-out distances, or the features have another number of dimensions.
        """
        if not self.num_held_out:
            raise SwagError(
                "The OOD score is a fraction of held-out examples, and none have been seen yet: swag_trainer.tune(posterior, model, data) "
                "measures their distances, or a Trainer with an eval_dataset."
            )
        distance, held_out = self.distance(features), self.held_out.numpy()
        score = np.searchsorted(held_out, distance, side="left") / (len(held_out) + 1)
        beyond = distance > held_out[-1]
        score[beyond] += (1 - held_out[-1] / distance[beyond]) / (len(held_out) + 1)
        return score

    def with_held_out(self, distances: ArrayLike) -> FeatureDistribution:
        """Return the same distribution with other held-out distances, in any order. Shape (n,)."""
        held_out = torch.as_tensor(np.sort(np.asarray(distances, dtype=np.float64)))
        if held_out.dim() != 1 or not torch.isfinite(held_out).all():
            raise SwagError("Distances of held-out examples must be finite and have the shape (n,).")
        return replace(self, held_out=held_out)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors for a posterior's file, their names beginning with "ood/"."""
        flag = torch.tensor([self.cross_fitted], dtype=torch.uint8)
        values = (self.means, self.directions, self.variances, torch.tensor([self.residual]), self.held_out, flag)
        return {PREFIX + name: value for name, value in zip(_DTYPES, values, strict=True)}

    @staticmethod
    def owns(name: str) -> bool:
        """Whether a tensor of a posterior's file belongs to a feature distribution."""
        return name.startswith(PREFIX)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, where: str) -> FeatureDistribution | None:
        """Undo `tensors`; nothing about them is trusted.

        Args:
            tensors: All tensors of the file.
            where: The file's name, for errors.

        Returns:
            The distribution; None where the file has none.

        Raises:
            PosteriorFormatError: A name, dtype, shape or value that no feature distribution has.
        """
        found = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if cls.owns(name)}
        if not found:
            return None
        dtypes = {name: tensor.dtype for name, tensor in found.items()}
        if dtypes != _DTYPES:
            raise PosteriorFormatError(
                f"{where} has the tensors {shortened(str(dtypes))} of {PREFIX}; {_DTYPES} were expected."
            )
        means, directions, variances, residual, held_out, flag = (found[name].clone() for name in _DTYPES)
        shapes = [tuple(tensor.shape) for tensor in (means, directions, variances, residual, held_out, flag)]
        num_classes, size = shapes[0] if means.dim() == 2 else (0, 0)
        rank = len(variances) if variances.dim() == 1 else -1
        fits = shapes[1:] == [(rank, size), (rank,), (1,), (held_out.numel(),), (1,)] and rank <= min(size, FULL_RANK)
        if not fits or not 1 <= num_classes <= MAX_SIZE or not 1 <= size <= MAX_SIZE or held_out.numel() > MAX_SIZE:
            raise PosteriorFormatError(
                f"{where}: the tensors of {PREFIX} have the shapes {shortened(str(shapes))}; (C, h), (r, h), (r,), (1,), (n,) and (1,) were "
                f"expected, with r <= {FULL_RANK}."
            )
        if not (variances > 0).all() or not (residual > 0).all():
            raise PosteriorFormatError(f"{where}: a variance of {PREFIX} is not above 0.")
        if (held_out < 0).any() or (held_out.diff() < 0).any():
            raise PosteriorFormatError(f"{where}: the distances of {PREFIX} are not ascending from 0.")
        return cls(means, directions, variances, float(residual), held_out, bool(flag))

    def _whitened(self, features: Tensor) -> Tensor:
        """Return features whose differences have the Mahalanobis distance as their length. (N, h) -> (N, h), float64."""
        directions = self.directions.double()
        factors = (self.residual / self.variances.double()).sqrt() - 1
        features = features - self.means.double().mean(dim=0)
        return (features + (features @ directions.T * factors) @ directions) / math.sqrt(self.residual)


def fit(features: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> FeatureDistribution:
    """Fit class means and a shared covariance, shrunk towards a multiple of the identity (Ledoit and Wolf 2004, eq. 14).

    With more than 1,024 dimensions the 256 directions of largest variance are kept; all others have their mean variance, the maximum
    likelihood of such a covariance (Tipping and Bishop 1999).

    Args:
        features: Of the training examples. Shape (N, h).
        labels: Their classes; a class without examples has no mean. Shape (N,), integers.

    Returns:
        The distribution, without held-out distances.

    Raises:
        SwagError: Shapes that do not fit, numbers that are not finite, or no class with two different examples.
    """
    features, labels = torch.as_tensor(features).double(), torch.as_tensor(labels)
    if features.dim() != 2 or labels.shape != features.shape[:1] or not torch.isfinite(features).all():
        raise SwagError(
            f"Features must be finite, of shape (N, h), and have a label each; got shapes {tuple(features.shape)} and "
            f"{tuple(labels.shape)}."
        )
    classes, members = labels.unique(return_inverse=True)
    counts = members.bincount()
    means = torch.zeros(len(classes), features.shape[1], dtype=torch.float64).index_add_(0, members, features) / counts[:, None]
    centred = features - means[members]
    if not centred.any():
        raise SwagError(
            f"{len(features)} examples of {len(classes)} classes have no variance within their classes: the OOD score needs at least two "
            "different examples of a class."
        )
    variances, directions = _principal(centred)
    shrinkage, target = _shrinkage(centred, variances)
    size, rank = features.shape[1], len(variances)
    total = (1 - shrinkage) * variances + shrinkage * target
    kept = rank if size <= FULL_RANK else min(rank, LOW_RANK)
    dropped = total[kept:].sum() + (size - rank) * shrinkage * target
    # In a space without any variance every other text would be infinitely far away.
    smallest = torch.finfo(torch.float32).eps * float(total[0])
    residual = max(float(dropped) / max(size - kept, 1), smallest)
    return FeatureDistribution(
        means=means.float(),
        directions=directions[:kept].float().contiguous(),
        variances=total[:kept].clamp_min(smallest).float(),
        residual=float(torch.tensor(residual, dtype=torch.float32)),
    )


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return variances and directions of centred features, the largest first. Shapes (r,) and (r, h), r <= min(N, h)."""
    number, size = centred.shape
    wide = number < size
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    # What is smaller is rounding of the products, and not a direction of the data.
    above = values > values[-1] * max(number, size) * torch.finfo(torch.float64).eps
    values, vectors = values[above].flip(0), vectors[:, above].flip(1)
    directions = (centred.T @ vectors / values.sqrt() if wide else vectors).T
    return values / number, directions


def _shrinkage(centred: Tensor, variances: Tensor) -> tuple[float, float]:
    """Return Ledoit and Wolf's weight of the target, in [0, 1], and the target's variance.

    With S the covariance of N centred vectors x of h dimensions, and m = tr(S) / h: the weight is b / d with d = |S - m I|^2 / h and
    b = min(d, sum |x x^T - S|^2 / (N^2 h)), both of which the norms of x and the eigenvalues of S give.
    """
    number, size = centred.shape
    mean, square = float(variances.sum()) / size, float(variances.square().sum())
    spread = square / size - mean**2
    error = (float(centred.square().sum(dim=1).square().sum()) / number - square) / (number * size)
    return (1.0 if spread <= error else max(error, 0.0) / spread), mean
