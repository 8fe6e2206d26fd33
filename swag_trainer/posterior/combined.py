"""CombinedPosterior: the head's weights from one posterior, all others from another, independently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from swag_trainer.errors import AdapterMismatchError, PosteriorFormatError, SwagError
from swag_trainer.posterior.base import STORAGE, Draws, StorageDtype, WeightPosterior
from swag_trainer.posterior.design import Design, derived_seed
from swag_trainer.posterior.gaussian import checked_num_samples, checked_scale
from swag_trainer.posterior.kronecker import KroneckerPosterior
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.members import MIXTURE, at_mean, describe_member, read_member, tensors_by_member
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter

_PARTS = ("body", "head")


@dataclass(frozen=True, eq=False, repr=False)
class CombinedPosterior(WeightPosterior):
    """Draws of the head from its Laplace approximation, and of everything below it from SWAG, SWA or any other posterior.

    Attributes:
        layout: Keys and shapes of all weights.
        body: The posterior of all weights, whose draws of the head are not used, with its own scale.
        head: The posterior of the head's weights, with its own scale, around the same mean.
        record: Its scale is a factor of the scales of both.
        adapter: The adapter it lies beside, at the mean.
    """

    kind: ClassVar[str] = "combined"

    layout: WeightLayout
    body: WeightPosterior
    head: KroneckerPosterior
    record: PosteriorRecord
    adapter: SavedAdapter

    @classmethod
    def of(cls, body: WeightPosterior, head: KroneckerPosterior) -> CombinedPosterior:
        """Combine two posteriors.

        What `swag_trainer.tune` chose for one of them is left out, but for its scale: tune the combination.

        Args:
            body: Of the whole adapter.
            head: Of its head, as ``fit_posterior(model, data, method="laplace-head")`` fits it to the model at the mean of ``body``, which
                `swag_trainer.SwagCallback` leaves in the model.

        Raises:
            SwagError: ``head`` is no `KroneckerPosterior`, or ``body`` is a combination itself or has several means.
            AdapterMismatchError: ``head`` has weights that ``body`` lacks, or lies around other weights.
        """
        if not isinstance(head, KroneckerPosterior):
            raise SwagError(
                f"head must be a Laplace approximation of the head, a KroneckerPosterior, got {type(head).__name__}."
            )
        _check(body, head)
        body = at_mean(body)
        record = replace(body.record, scale=1.0, tuning=None, features=None)
        own = replace(head.record, tuning=None, features=None, adapter_digest=None)
        return cls(body.layout, body, replace(head, record=own, adapter=body.adapter), record, body.adapter)

    @property
    def title(self) -> str:
        """Names of both, such as SWAG + Laplace (head)."""
        return f"{self.body.title} + {self.head.title}"

    def mean_vector(self) -> Tensor:
        """Return the mean of the weights. Shape (P,), float32."""
        return self.body.mean_vector()

    def draw(self, num_samples: int, *, seed: int, scale: float | None = None, design: Design = "matched") -> Draws:
        """Draw weight vectors, see `WeightPosterior.draw`. Shape (S, P).

        Args:
            num_samples, seed, design: As there; the draws of the two parts are independent of each other.
            scale: Factor of the scales of both parts; None for the combination's own, 0 for the mean.
        """
        factor, count = self.scale if scale is None else checked_scale(scale), checked_num_samples(num_samples)
        drawn = self.body.draw(count, seed=seed, scale=factor * self.body.scale, design=design)
        own = self.head.draw(count, seed=derived_seed(seed, "head"), scale=factor * self.head.scale, design=design)
        vectors = drawn.vectors.clone()
        for key, weight in self.layout.unflatten(vectors).items():
            if key in self.head.layout.keys:
                weight.copy_(self.head.layout.unflatten(own.vectors)[key])
        return Draws(vectors, block_size=max(drawn.block_size, own.block_size))

    @property
    def total_variance(self) -> float | None:
        """None: the trace over the body without its head is not kept."""
        return None

    def stored_as(self, dtype: StorageDtype) -> Self:
        """Return it as a file of this precision gives it back, see `WeightPosterior.stored_as`."""
        return replace(self, body=self.body.stored_as(dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of both parts, ``body/<name>`` and ``head/<name>``."""
        return {f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(self, part).tensors().items()}

    def metadata(self) -> dict[str, Any]:
        """Return kind, scale and metadata of both parts, as JSON values."""
        (body, storage), (head, _) = (describe_member(getattr(self, part)) for part in _PARTS)  # the head has one precision
        return {"body": body, "head": head} | ({} if storage is None else {STORAGE: storage})

    def summary(self) -> dict[str, Any]:
        """Return how both parts were made."""
        return self.body.summary() | {f"head_{name}": value for name, value in self.head.summary().items()}

    def with_base_model(self, name: str) -> Self:
        """Return the same posterior whose files name another base model."""
        parts = {part: getattr(self, part).with_base_model(name) for part in _PARTS}
        return replace(super().with_base_model(name), **parts)

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
            PosteriorFormatError: No combination can have them.
        """
        own = tensors_by_member(tensors, _PARTS, owners="neither body nor head", where=where)
        if not set(metadata) <= {*_PARTS, STORAGE}:
            raise PosteriorFormatError(f"{where} states something of a combination that this version does not know.")
        body, head = (
            read_member(
                metadata.get(part),
                own[part],
                record,
                adapter,
                metadata.get(STORAGE) if part == "body" else None,
                where=f"{where}, {part}",
            )
            for part in _PARTS
        )
        if not isinstance(head, KroneckerPosterior):
            raise PosteriorFormatError(f"{where}: the head should be of kind {KroneckerPosterior.kind!r}, got {head.kind!r}.")
        try:
            _check(body, head)
        except SwagError as error:
            raise PosteriorFormatError(f"{where}: {error}") from error
        return cls(body.layout, body, head, record, adapter)

    def __repr__(self) -> str:
        """Sizes, never tensors."""
        return f"CombinedPosterior({self.title}, P={self.layout.size}, scale={self.scale:g}, base_model={self.adapter.base_model!r})"


def _check(body: WeightPosterior, head: KroneckerPosterior) -> None:
    """Do nothing if the head is of this body.

    Raises:
        SwagError, AdapterMismatchError: It is not, and why.
    """
    if isinstance(body, CombinedPosterior) or body.kind == MIXTURE:
        raise SwagError(f"body must be a posterior with one mean and one head, got one of kind {body.kind!r}.")
    mean = body.mean
    for key, weight in head.mean.items():
        if key not in mean or mean[key].shape != weight.shape:
            raise AdapterMismatchError(
                f"The head's weight {key!r} is not among the weights of the body, or has another shape there."
            )
        if not torch.allclose(mean[key], weight, rtol=1e-3, atol=1e-5):
            raise AdapterMismatchError(
                f"The head lies around other weights than the body: {key!r} differs by up to {float((mean[key] - weight).abs().max()):.3g}. Fit "
                "it to the model at the body's mean, which SwagCallback leaves in the model."
            )
