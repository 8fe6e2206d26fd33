"""CoefficientPosterior: SWAG over the few coefficients that a LoRA adapter's weights are made of (NOLA, LoRA-XS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, shortened
from swag_trainer.posterior import lora_xs, nola  # noqa: F401 - their maps are known from here on
from swag_trainer.posterior.base import Draws, StorageDtype, WeightPosterior
from swag_trainer.posterior.coefficient_map import CoefficientMap, read_map, weight_key
from swag_trainer.posterior.compression import Compression
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.storage import content_digest
from swag_trainer.posterior.swag import SwagPosterior, SwagRecord
from swag_trainer.posterior.tuning import Center

_MAP = "map"
_BASIS = "basis/"


@dataclass(frozen=True, eq=False, repr=False)
class CoefficientPosterior(WeightPosterior):
    """A Gaussian over coefficients, whose draws are mapped to the weights of plain LoRA.

    The map is linear for each weight, so its value at the mean coefficients, which the adapter beside holds, is the mean of the weights. The file
    holds the coefficients; it is a few kilobytes, and as long again as the head where one trains in ``modules_to_save``.

    Attributes:
        coefficient_layout: Keys and shapes of what trained: ``<weight>.coefficients``, and weights without coefficients such as the head's.
        gaussian: Over their flat vectors.
        record, collection, adapter, compression: As of a `SwagPosterior`.
        map: From coefficients to weights.
    """

    kind: ClassVar[str] = "coefficients"

    coefficient_layout: WeightLayout
    gaussian: LowRankGaussian
    record: PosteriorRecord
    collection: SwagRecord
    adapter: SavedAdapter
    map: CoefficientMap
    compression: Compression | None = None

    @classmethod
    def of(cls, coefficients: SwagPosterior, mapping: CoefficientMap) -> CoefficientPosterior:
        """Return the posterior over weights that one over coefficients stands for."""
        parts = coefficients.gaussian, coefficients.record, coefficients.collection, coefficients.adapter
        return cls(coefficients.layout, *parts, mapping, coefficients.compression)

    @cached_property
    def coefficients(self) -> SwagPosterior:
        """The posterior over the coefficients themselves."""
        parts = self.gaussian, self.record, self.collection, self.adapter
        return SwagPosterior(self.coefficient_layout, *parts, self.compression)

    @cached_property
    def layout(self) -> WeightLayout:
        """Keys and shapes of the adapter's weights."""
        made = dict(zip(self.map.layout.keys, self.map.layout.shapes, strict=True))
        trained = dict(zip(self.coefficient_layout.keys, self.coefficient_layout.shapes, strict=True))
        shapes = made | {key: shape for key, shape in trained.items() if weight_key(key) is None}
        return WeightLayout(tuple(sorted(shapes)), tuple(shapes[key] for key in sorted(shapes)))

    @property
    def title(self) -> str:
        """SWAG, and the kind of coefficients."""
        return f"SWAG ({self.map.title})"

    @property
    def num_collected(self) -> int:
        """How many vectors of coefficients went into the moments."""
        return self.coefficients.num_collected

    @property
    def rank(self) -> int:
        """K, the deviations that were kept."""
        return self.gaussian.rank

    def weights_of(self, coefficients: Tensor) -> Tensor:
        """Map vectors of coefficients to vectors of weights. Shapes (..., c) to (..., P), float32."""
        vectors = torch.empty(*coefficients.shape[:-1], self.layout.size)
        places = self.layout.unflatten(vectors)
        for key, piece in self.coefficient_layout.unflatten(coefficients).items():
            weight = weight_key(key)
            if weight is None:
                places[key].copy_(piece)
            else:
                places[weight].copy_(self.map.weight(weight, piece))
        return vectors

    @cached_property
    def _mean(self) -> Tensor:
        return self.weights_of(self.gaussian.mean)

    def mean_vector(self) -> Tensor:
        """Return the mean of the weights, which are those at the mean coefficients. Shape (P,), float32."""
        return self._mean

    def draw(self, num_samples: int, *, seed: int, scale: float | None = None, design: Design = "matched") -> Draws:
        """Draw coefficients as `SwagPosterior.draw` does, and map them to weights. Shape (S, P).

        Raises:
            SwagError: ``num_samples`` or ``scale`` is out of range.
        """
        drawn = self.coefficients.draw(num_samples, seed=seed, scale=scale, design=design)
        return drawn._replace(vectors=self.weights_of(drawn.vectors))

    def last_snapshot(self) -> Tensor | None:
        """Return the weights that training ended with, see `SwagPosterior.last_snapshot`. Shape (P,)."""
        last = self.coefficients.last_snapshot()
        return None if last is None else self.weights_of(last)

    @property
    def centers(self) -> tuple[Center, ...]:
        """Names of the centres, see `SwagPosterior.centers`."""
        return self.coefficients.centers

    def center(self, name: Center) -> Tensor:
        """Return the weights at a centre of the coefficients, see `SwagPosterior.center`. Shape (P,), float32."""
        return self.weights_of(self.coefficients.center(name))

    @property
    def adapter_holds_mean(self) -> bool:
        """Whether the adapter beside it has the mean weights; but for rounding, as they are computed from the coefficients anew."""
        saved = self.adapter.tensors
        return all(
            key in saved and torch.allclose(weight, saved[key].float().cpu(), rtol=1e-2, atol=1e-6)
            for key, weight in self.mean.items()
        )

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digits of coefficients and bases. The weights' last bits may differ between machines, and do not count."""
        return content_digest({}, {"posterior": [self.kind, self.coefficients.digest, self.map.digest]})

    def stored_as(self, dtype: StorageDtype) -> Self:
        """Return it as a file of this precision gives it back, see `SwagPosterior.stored_as`."""
        stored = self.coefficients.stored_as(dtype)
        return replace(self, gaussian=stored.gaussian, compression=stored.compression)

    def tensors(self) -> dict[str, Tensor]:
        """Return those of the Gaussian over the coefficients, and ``basis/<key>`` of bases that no seed gives."""
        return self.coefficients.tensors() | {f"{_BASIS}{key}": tensor for key, tensor in self.map.tensors().items()}

    def metadata(self) -> dict[str, Any]:
        """Return how it was collected, and kind, settings and digest of the bases, as JSON values."""
        return self.coefficients.metadata() | {_MAP: self.map.metadata()}

    def summary(self) -> dict[str, Any]:
        """Return how it was collected in a few numbers, its rank K, and how many coefficients stand for how many weights."""
        sizes = zip(self.coefficient_layout.keys, self.coefficient_layout.sizes, strict=True)
        count = sum(size for key, size in sizes if weight_key(key) is not None)
        made_of = {"total_coefficients": count, "weights_of_coefficients": self.map.layout.size}
        collected = {name: value for name, value in self.coefficients.summary().items() if isinstance(value, (str, int, float))}
        return collected | self.map.settings() | made_of

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
        """Undo `tensors` and `metadata`; nothing about them is trusted. The bases are made again and compared with the digest.

        Raises:
            PosteriorFormatError: No posterior of this kind can have them, or the bases are others here.
        """
        bases = {name.removeprefix(_BASIS): tensor for name, tensor in tensors.items() if name.startswith(_BASIS)}
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_BASIS)}
        collected = {name: value for name, value in metadata.items() if name != _MAP}
        swag = SwagPosterior.from_tensors(own, record, adapter, collected, where=where)
        shapes = zip(swag.layout.keys, swag.layout.shapes, strict=True)
        made = {weight: shape for key, shape in shapes if (weight := weight_key(key)) is not None}
        missing, twice = sorted(set(made) - set(adapter.tensors)), sorted(set(made) & set(swag.layout.keys))
        if missing or twice or not made:
            problem = f"the adapter beside it lacks {shortened(repr(missing[0]))}" if missing else "it has none"
            problem = f"it also holds the weight {shortened(repr(twice[0]))} itself" if twice else problem
            raise PosteriorFormatError(f"{where} should hold coefficients of the adapter's weights; {problem}.")
        layout = WeightLayout.of({key: adapter.tensors[key] for key in made})
        mapping = read_map(metadata.get(_MAP), layout, bases, made, where=where)
        return cls.of(swag, mapping)

    def __repr__(self) -> str:
        """Sizes, how it was collected; never tensors."""
        return (
            f"CoefficientPosterior({self.map.title}, {self.coefficient_layout.size} numbers for P={self.layout.size} weights, "
            f"num_collected={self.num_collected}, rank={self.rank}, scale={self.scale:g}, base_model={self.adapter.base_model!r})"
        )
