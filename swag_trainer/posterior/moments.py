"""Running mean, variance and deviations of SWAG, updated with every collected weight vector."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, isclose, isfinite

import torch
from torch import Tensor

_EPSILON = torch.finfo(torch.float32).eps


class RunningMoments:
    """Mean, scatter and latest deviations of the weight vectors folded in so far, in float32.

    The one statistic of this package that changes in place: a collection touches P numbers a handful of times, and copying
    K * P of them to leave an old value intact would cost more than the collection itself. Its owner is the collector.
    The latest K deviations lie in a ring of K + 1 rows; the vector to come is written into the row that is free (`next_row`) and
    becomes a deviation there.

    The update is Welford's (1962): the shorter ``mean(w**2) - mean(w)**2`` cancels, and for a weight of 0.5 that moves by
    1e-4 float32 makes it negative every other time. It runs on ``w - origin``, with the first vector as the origin: that
    difference is exact where the weights barely move, so the moments are as good as the spread deserves and do not depend on
    how far from zero the weights lie (at 0.5 +- 1e-5 plain float32 Welford loses three digits of the variance). The price is
    one more vector: K + 3 of them instead of K + 2, and the free row.

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
        self._latest_length = 0.0
        self._origin = torch.zeros(size, device=device)
        self._shift = torch.zeros(size, device=device)
        self._scatter = torch.zeros(size, device=device)
        self._kept = max(rank, 1)  # with rank 0 the latest deviation is kept all the same, to see whether the weights move
        self._ring = torch.zeros(self._kept + 1, size, device=device)

    @property
    def size(self) -> int:
        """P, the length of the vectors."""
        return self._origin.numel()

    def fold(self, weights: Tensor) -> float | None:
        """Fold one more weight vector in.

        Args:
            weights: The next vector. Shape (P,), any floating dtype.

        Returns:
            The length of its deviation from the mean; None where it is the last vector once more, which is not counted twice.

        Raises:
            ValueError: ``weights`` has another length than the vectors before it.
            FloatingPointError: A weight is NaN or infinite. Nothing was folded.
        """
        if tuple(weights.shape) != (self.size,):
            raise ValueError(
                f"fold() got weights of shape {list(weights.shape)} after {self.count} vectors of {self.size}. "
                "Was the adapter changed between two collections?"
            )
        self.next_row.copy_(weights)
        return self.update_from_row()

    @property
    def next_row(self) -> Tensor:
        """The free row of the ring: where to write the next vector before `update_from_row`. Shape (P,), float32."""
        return self._ring[self.count % len(self._ring)]

    def update_from_row(self) -> float | None:
        """Do what `fold` does with the vector that was written into `next_row`. No memory is asked for, which is half of the time."""
        row = self.next_row
        if self.count == 0:
            return self._begin(row)
        step = row.sub_(self._origin).sub_(self._shift)
        length = float(torch.dot(step, step)) ** 0.5
        # A weight that is not finite makes the sum of the squares so; huge weights do it too.
        if not isfinite(length) and not bool(torch.isfinite(step).all()):
            raise FloatingPointError("A weight is NaN or infinite.")
        latest = self._ring[(self.count - 1) % len(self._ring)]
        if isclose(length, self._latest_length, rel_tol=1e-4) and self._is_rounding(step - latest, latest):
            return None
        self.count += 1
        fraction = (self.count - 1) / self.count
        self._scatter.addcmul_(step, step, value=fraction)
        self._shift.add_(step, alpha=1.0 / self.count)
        row.mul_(fraction)  # the distance to the new mean
        self._latest_length = length * fraction
        return self._latest_length

    def _begin(self, row: Tensor) -> float:
        """Take the first vector as the origin. It is its own mean: shift, scatter and its deviation stay zero."""
        if not bool(torch.isfinite(row).all()):
            raise FloatingPointError("A weight is NaN or infinite.")
        self._origin.copy_(row)
        row.zero_()
        self.count, self._latest_length = 1, 0.0
        return 0.0

    def _is_rounding(self, change: Tensor, latest: Tensor) -> bool:
        """Is the change since the latest vector no more than what the few operations on it round away?"""
        return bool((change.abs() <= 8 * _EPSILON * (latest.abs() + self._shift.abs())).all())

    def mean_with(self, weights: Tensor) -> Tensor:
        """Return what the mean would be after ``fold(weights)``, bit for bit, and change nothing. Shape (P,), float32."""
        if self.count == 0:
            return weights.to(self._origin, copy=True)
        step = weights.to(self._origin) - self._origin - self._shift
        return torch.add(self._shift, step, alpha=1.0 / (self.count + 1)).add_(self._origin)

    def restart(self) -> None:
        """Forget every vector."""
        self.count, self._latest_length = 0, 0.0
        for tensor in (self._origin, self._shift, self._scatter, self._ring):
            tensor.zero_()

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
        return self._latest(self.rank)

    def _latest(self, number: int) -> Tensor:
        """A copy of the latest ``number`` deviations, or of as many as there are, oldest first."""
        rows = [index % len(self._ring) for index in range(max(0, self.count - number), self.count)]
        return self._ring[rows]

    def release(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return `mean`, `variance` and `deviations`, bit for bit, in the memory of these statistics, which are empty afterwards.

        A copy would double the memory at the end of a collection, K + 2 vectors of P numbers.
        """
        mean, variance = self._origin.add_(self._shift), self._scatter.div_(max(self.count, 1))
        if self.count >= self.rank > 0:
            oldest = (self.count - self.rank) % len(self._ring)
            _rotate_rows(self._ring, oldest)
            deviations = self._ring[: self.rank]
        else:  # the ring is not full: a copy of the few rows costs less than keeping it whole
            deviations = self.deviations
        self._origin = self._shift = self._scatter = mean.new_empty(0)
        self._ring = mean.new_empty(len(self._ring), 0)
        return mean, variance, deviations

    def tensors(self) -> dict[str, Tensor]:
        """Return everything a restart needs besides ``count``, for `from_tensors`."""
        return {
            "origin": self._origin,
            "shift": self._shift,
            "scatter": self._scatter,
            "latest": self._latest(self._kept),
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
        kept = min(count, moments._kept)
        expected = dict.fromkeys(("origin", "shift", "scatter"), (moments.size,)) | {"latest": (kept, moments.size)}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"Moments of {count} vectors at rank {rank} have the shapes {expected}, got {found}.")
        moments.count = count
        moments._origin.copy_(tensors["origin"])
        moments._shift.copy_(tensors["shift"])
        moments._scatter.copy_(tensors["scatter"])
        for row, deviation in zip(range(count - kept, count), tensors["latest"], strict=True):
            moments._ring[row % len(moments._ring)].copy_(deviation)
            moments._latest_length = float(deviation.norm())
        return moments


def _rotate_rows(matrix: Tensor, first: int) -> None:
    """Make row ``first`` the first one, in place and with the memory of one row."""
    count = len(matrix)
    for start in range(gcd(count, first)):
        row, kept = start, matrix[start].clone()
        while (source := (row + first) % count) != start:
            matrix[row].copy_(matrix[source])
            row = source
        matrix[row].copy_(kept)
