"""SwagPosterior: the Gaussian that SWAG fits to the weights on the way of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.base import STORAGE, Draws, StorageDtype, WeightPosterior
from swag_trainer.posterior.compression import Compression, compress
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.documents import read_dataclass
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.packing import pack, unpack
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.tuning import Center

_TAIL_PERCENT = 30


@dataclass(frozen=True)
class SwagRecord:
    """How the snapshots of a SWAG posterior were collected.

    Attributes:
        num_collected: How many weight vectors went into it.
        schedule: The collection schedule, as it prints.
        first_step, last_step: Optimizer steps of the first and the last collection.
        num_skipped: How many were left out because a weight was not finite.
        acceptance: The rule that accepted or rejected snapshots, as it prints; None where all were taken.
        first_learning_rate, last_learning_rate: Learning rate at these steps; None where there was no scheduler.
        steps, learning_rates, deviation_norms: Of every snapshot in turn: its optimizer step, the rate there, and the length of its
            deviation from the mean as it stood.
        diagnostics: What the trajectory says about the posterior, see `swag_trainer.collection.diagnostics`.
        group_learning_rates: At the last collection, that of every group of parameters of the optimizer; empty where there is one group.
    """

    num_collected: int
    schedule: str
    first_step: int
    last_step: int
    num_skipped: int = 0
    acceptance: str | None = None
    first_learning_rate: float | None = None
    last_learning_rate: float | None = None
    steps: list[int] = field(default_factory=list)
    learning_rates: list[float | None] = field(default_factory=list)
    deviation_norms: list[float] = field(default_factory=list)
    diagnostics: dict[str, float] = field(default_factory=dict)
    group_learning_rates: list[float] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """Return the record as JSON values, without what does not apply: earlier versions refuse a field that they do not know."""
        document = asdict(self)
        return document if self.group_learning_rates else {k: v for k, v in document.items() if k != "group_learning_rates"}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str) -> SwagRecord:
        """Read what `to_document` returned; nothing in the document is trusted to have the right type.

        Raises:
            PosteriorFormatError: A field is missing, unknown or of another type.
        """
        record = read_dataclass(cls, document, where=where)
        if record.num_collected < 2:
            raise PosteriorFormatError(f"{where} states num_collected={record.num_collected}.")
        return record


@dataclass(frozen=True, eq=False, repr=False)
class SwagPosterior(WeightPosterior):
    """A Gaussian over the weights of one adapter, eq. (1) of Maddox et al. 2019, arXiv:1902.02476.

    Made by `SwagCallback` (``callback.posterior``), read with `from_pretrained`, or made of saved adapters with
    `posterior_from_checkpoints`. A value: nothing changes it in place.

    Attributes:
        layout: Keys and shapes of the weights.
        gaussian: The distribution over flat vectors of P numbers.
        record: What it belongs to and how it is to be used.
        collection: How it was collected.
        adapter: The adapter it lies beside, as PEFT saves it; after training that adapter holds the posterior mean.
        compression: What was dropped when the Gaussian was compressed for a file; None where it was not.
    """

    kind: ClassVar[str] = "swag"

    layout: WeightLayout
    gaussian: LowRankGaussian
    record: PosteriorRecord
    collection: SwagRecord
    adapter: SavedAdapter
    compression: Compression | None = None

    @property
    def variance(self) -> dict[str, Tensor]:
        """Diagonal variance of the collected vectors, ``{key: (*shape)}``, float32, before the one-half and the scale."""
        return self.layout.unflatten(self.gaussian.variance)

    @property
    def deviations(self) -> dict[str, Tensor]:
        """The K deviations that were kept, oldest first, ``{key: (K, *shape)}``, float32."""
        return self.layout.unflatten(self.gaussian.deviations)

    @property
    def num_collected(self) -> int:
        """How many weight vectors went into the moments."""
        return self.collection.num_collected

    @property
    def rank(self) -> int:
        """K, the deviations that were kept; 0 makes it SWAG-diagonal."""
        return self.gaussian.rank

    def mean_vector(self) -> Tensor:
        """Return the mean of the weights: the SWA solution. Shape (P,), float32."""
        return self.gaussian.mean

    def summary(self) -> dict[str, Any]:
        """Return how it was collected, and its rank K."""
        return asdict(self.collection) | {"rank": self.rank}

    @property
    def title(self) -> str:
        """SWAG."""
        return "SWAG"

    def last_snapshot(self) -> Tensor | None:
        """Return the last weights that were collected: the mean stands still after them, so they are mean + deviation. Shape (P,).

        None where no deviations were kept. Exact to float32 rounding in memory and from a file in float32. From a file in bfloat16
        the deviation lacks the dropped directions (see ``compression``), and each number of the others is rounded by up to 2^-9 of
        itself.
        """
        return self.gaussian.mean + self.gaussian.deviation(-1) if self.rank else None

    @property
    def centers(self) -> tuple[Center, ...]:
        """Names of the centres: the mean, and with kept deviations also the tail and the last snapshot."""
        return ("mean", "tail", "last") if self.rank else ("mean",)

    def center(self, name: Center) -> Tensor:
        """Return a weight vector that draws can be centred on. Shape (P,), float32.

        * "mean": the mean of the N snapshots (SWA).
        * "tail": the mean of the last 30 % of them; of the K last ones where K deviations are fewer than that.
        * "last": the last snapshot, see `last_snapshot`.

        No center is stored: the deviations d_n = w_n - mean_n hold them. One snapshot moves the mean by d_n / (n - 1), so

            w_n - mean_N  =  d_n - sum_(j > n) d_j / (j - 1)

        and over the last m snapshots the mean of these is (N - m) / m * sum_(j > N - m) d_j / (j - 1). The accuracy is that of
        `last_snapshot`.

        Raises:
            SwagError: The posterior does not have that centre.
        """
        if name == "mean" or not self.rank:
            return super().center(name)
        if name == "last":
            return self.gaussian.mean + self.gaussian.deviation(-1)
        number = min(-(-self.num_collected * _TAIL_PERCENT // 100), self.rank)
        before = self.num_collected - number
        coefficients = torch.zeros(self.rank, dtype=torch.float64)
        coefficients[self.rank - number :] = before / number / torch.arange(before, self.num_collected, dtype=torch.float64)
        return self.gaussian.mean + self.gaussian.combination(coefficients)

    @property
    def total_variance(self) -> float:
        """Sum of the variance / 2 + |D|^2 / (2 (K - 1)); without deviations the one-half is left out, as in the covariance."""
        return self.gaussian.total_variance

    def draw(self, num_samples: int, *, seed: int, scale: float | None = None, design: Design = "matched") -> Draws:
        """Draw weight vectors.

        Args:
            num_samples: S, at least 1.
            seed: The draws depend on this alone: not on the global random state, the device or the number of threads.
            scale: Factor of the covariance; None for the posterior's own, 0 for the mean (SWA).
            design: "matched" makes the S draws cancel each other's linear error, see `swag_trainer.posterior.design`;
                "iid" makes them independent.

        Returns:
            Vectors of shape (S, P), which count alike.

        Raises:
            SwagError: ``num_samples`` or ``scale`` is out of range.
        """
        scale = self.scale if scale is None else scale
        vectors = self.gaussian.sample(num_samples, seed=seed, scale=scale, design=design)
        return Draws(vectors, block_size=1 if design == "iid" or scale == 0 else num_samples)

    def quadratic_form(self, scale: float, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """Return the function J -> J Sigma J^T at a scale, see `GaussianPosterior`."""
        return self.gaussian.quadratic_form(scale, device)

    def metadata(self) -> dict[str, Any]:
        """Return how it was collected, and how it was compressed where it was, as JSON values."""
        compression = {} if self.compression is None else {STORAGE: asdict(self.compression)}
        return self.collection.to_document() | compression

    def stored_as(self, dtype: StorageDtype) -> Self:
        """Return the posterior as a file of this precision gives it back, see `WeightPosterior.stored_as`.

        In bfloat16 the deviations are rotated to principal directions, and the smallest, with 1e-7 of the energy together, are dropped. What was
        compressed before stays as it is. In float32 the deviations of a compressed posterior are reconstructed.
        """
        gaussian = self.gaussian
        if dtype == "float32":
            plain = LowRankGaussian(gaussian.mean, gaussian.variance, gaussian.deviations)
            return replace(self, gaussian=plain, compression=None)
        if gaussian.rotation is not None:
            return replace(self, gaussian=replace(gaussian, directions=gaussian.directions.bfloat16()))
        compressed, compression = compress(gaussian)
        return replace(self, gaussian=compressed, compression=compression)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `swag_trainer.posterior.packing.pack` makes of the Gaussian."""
        return pack(self.layout, self.gaussian)

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
            PosteriorFormatError: No SWAG posterior can have them.
        """
        collected = {name: value for name, value in metadata.items() if name != STORAGE}
        collection = SwagRecord.from_document(collected, where=where)
        layout, gaussian = unpack(tensors, num_collected=collection.num_collected, where=where)
        if (gaussian.rotation is None) == (STORAGE in metadata):
            raise PosteriorFormatError(f"{where} should state how it was compressed if, and only if, it has a rotation.")
        compression = read_dataclass(Compression, metadata[STORAGE], where=where) if STORAGE in metadata else None
        return cls(layout, gaussian, record, collection, adapter, compression)

    def reparametrised(
        self,
        layout: WeightLayout,
        record: PosteriorRecord,
        adapter: SavedAdapter,
        *,
        position: Callable[[Tensor], Tensor],
        displacement: Callable[[Tensor], Tensor],
    ) -> Self:
        """Carry the posterior over to other weights, see `WeightPosterior.reparametrised`."""
        gaussian = LowRankGaussian(
            position(self.gaussian.mean),
            displacement(self.gaussian.variance),
            displacement(self.gaussian.directions.float()),
            self.gaussian.rotation,
        )
        return type(self)(layout, gaussian, record, self.collection, adapter, self.compression)

    def __repr__(self) -> str:
        """Sizes, how it was collected, and whether it was tuned; never tensors."""
        steps = f"steps {self.collection.first_step} to {self.collection.last_step}"
        tuned = "not tuned" if self.tuning is None else f"tuned on {self.tuning.dataset!r}"
        return (
            f"SwagPosterior({len(self.layout.keys)} weights, P={self.layout.size}, num_collected={self.num_collected} ({steps}), "
            f"rank={self.rank}, scale={self.scale:g}, {tuned}, base_model={self.adapter.base_model!r})"
        )
