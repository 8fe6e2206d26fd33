"""The streaming statistics of SWAG: what is kept of the weight vectors that a training run throws off."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class RunningMoments:
    """Mean, scatter and latest deviations of the weight vectors folded in so far, in float32.

    The one statistic of this package that changes in place: a collection touches P numbers a handful of times, and copying
    K * P of them to leave an old value intact would cost more than the collection itself. Its owner is the collector.

    The update is Welford's (1962): the shorter ``mean(w**2) - mean(w)**2`` cancels, and for a weight of 0.5 that moves by
    1e-4 float32 makes it negative every other time. It runs on ``w - origin``, with the first vector as the origin: that
    difference is exact where the weights barely move, so the moments are as good as the spread deserves and do not depend on
    how far from zero the weights lie (at 0.5 +- 1e-5 plain float32 Welford loses three digits of the variance). The price is
    one more vector: K + 3 of them instead of K + 2.

    Args:
        size: P, the length of the vectors.
        rank: How many deviations to keep: 0 for the diagonal only, else at least 2, because K - 1 divides.
        device: Where the statistics live.
    """

    def __init__(self, size: int, rank: int, *, device: torch.device | str = "cpu") -> None:
        if rank < 0 or rank == 1:
            raise ValueError(
                f"rank is the number of deviations to keep and must be 0 (diagonal only) or at least 2, got {rank}: "
                "the low-rank covariance is D D^T / (2 (K - 1))."
            )
        self.rank = rank
        self.count = 0
        self._origin = torch.zeros(size, device=device)
        self._shift = torch.zeros(size, device=device)
        self._scatter = torch.zeros(size, device=device)
        self._ring = torch.zeros(max(rank, 1), size, device=device)  # row 0 is scratch space when rank is 0

    @property
    def size(self) -> int:
        """P, the length of the vectors."""
        return self._origin.numel()

    def fold(self, weights: Tensor) -> None:
        """Fold one more weight vector in.

        Args:
            weights: The next vector. Shape (P,), any floating dtype.

        Raises:
            ValueError: ``weights`` has another length than the vectors before it.
        """
        if tuple(weights.shape) != (self.size,):
            raise ValueError(
                f"fold() got weights of shape {list(weights.shape)} after {self.count} vectors of {self.size}. "
                "Was the adapter changed between two collections?"
            )
        if self.count == 0:
            self._origin.copy_(weights)
        row = self._ring[self.count % len(self._ring)]
        self.count += 1
        torch.sub(weights.to(row), self._origin, out=row)
        step = row - self._shift
        self._shift.add_(step, alpha=1.0 / self.count)
        row.sub_(self._shift)
        self._scatter.addcmul_(step, row)

    @property
    def mean(self) -> Tensor:
        """Mean of the vectors. Shape (P,), float32."""
        return self._origin + self._shift

    @property
    def variance(self) -> Tensor:
        """Mean squared distance to the mean, weight by weight (divisor n, not n - 1). Shape (P,), float32, >= 0."""
        return self._scatter / max(self.count, 1)

    @property
    def deviations(self) -> Tensor:
        """The latest vectors, each minus the mean as it stood after that vector, oldest first.

        Shape (k, P), float32, with k = min(count, rank). The first vector of all was its own mean, so its row is zero.
        """
        kept = min(self.count, self.rank)
        if kept < self.rank:
            return self._ring[:kept].clone()
        if kept == 0:
            return self._ring[:0].clone()
        return self._ring.roll(-(self.count % self.rank), dims=0)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything a restart needs besides ``count``, for `from_tensors`."""
        return {
            "origin": self._origin,
            "shift": self._shift,
            "scatter": self._scatter,
            "deviations": self.deviations,
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], *, count: int, rank: int, device: torch.device | str = "cpu"
    ) -> RunningMoments:
        """Continue from what `tensors` returned; the next `fold` does what it would have done in the first process.

        Raises:
            ValueError: The tensors do not fit ``count`` and ``rank``.
        """
        moments = cls(tensors["origin"].numel(), rank, device=device)
        kept = min(count, rank)
        expected = dict.fromkeys(("origin", "shift", "scatter"), (moments.size,)) | {"deviations": (kept, moments.size)}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"Moments of {count} vectors at rank {rank} have the shapes {expected}, got {found}.")
        moments.count = count
        moments._origin.copy_(tensors["origin"])
        moments._shift.copy_(tensors["shift"])
        moments._scatter.copy_(tensors["scatter"])
        for row, deviation in zip(range(count - kept, count), tensors["deviations"], strict=True):
            moments._ring[row % len(moments._ring)].copy_(deviation)
        return moments
