"""CoefficientMap: how the weights of a LoRA adapter follow from few trained coefficients over fixed bases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, shortened
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.storage import content_digest

# In an adapter's file, "<module>.lora_A.coefficients" are what "<module>.lora_A.weight" is made of.
_COEFFICIENTS = (".lora_A.coefficients", ".lora_B.coefficients")
MAPS: dict[str, type[CoefficientMap]] = {}


def weight_key(key: str) -> str | None:
    """Return the key of the weight that coefficients stand for; None where the key is not one of coefficients.

    >>> weight_key("bert.query.lora_A.coefficients")
    'bert.query.lora_A.weight'
    """
    return key.rpartition(".")[0] + ".weight" if key.endswith(_COEFFICIENTS) else None


class CoefficientMap(ABC):
    """A linear map from a few coefficients to each of some weights of an adapter.

    Each weight has coefficients of its own and depends on them linearly, so the mean of the weights is the weight at the mean coefficients. LoRA's
    update B A is linear in A and in B, not in both together: the mean over draws of the update is not the update at the mean, as in all of LoRA.

    A new family is one file: a frozen dataclass that inherits from this and names its ``kind``, and its settings, a `CoefficientMethod`.

    Attributes:
        kind: Name of the family; it stands in the file.
        title: Name of the family in tables.
        layout: Keys and shapes of the weights that are made of coefficients.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    layout: WeightLayout

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        MAPS[cls.kind] = cls

    @abstractmethod
    def basis(self, key: str) -> Tensor:
        """Return the fixed tensor that a weight's coefficients multiply. Float32, on the CPU."""

    @staticmethod
    @abstractmethod
    def combine(coefficients: Tensor, basis: Tensor) -> Tensor:
        """Return the weight, or a stack of them, of coefficients, or a stack of them; differentiable."""

    @abstractmethod
    def coefficient_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a weight's coefficients."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what the bases follow from, as JSON values."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what the bases do not follow from anywhere else, by names of its own, to travel in a posterior's file."""

    @classmethod
    @abstractmethod
    def from_settings(cls, layout: WeightLayout, settings: Any, tensors: Mapping[str, Tensor], *, where: str) -> Self:
        """Undo `settings` and `tensors`; nothing about them is trusted.

        Raises:
            PosteriorFormatError: No map of this kind can have them.
        """

    def weight(self, key: str, coefficients: Tensor) -> Tensor:
        """Return the weight of coefficients on the CPU: the same bits wherever it is asked for, in float32.

        Args:
            key: Of the weight.
            coefficients: Shape (..., *coefficient_shape).

        Returns:
            Shape (..., *shape of the weight).
        """
        return self.combine(coefficients.detach().to("cpu", torch.float32), self.basis(key))

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digits of the numbers of all bases."""
        # One basis at a time: all of them together are as many times the adapter as a weight has coefficients.
        bases = {key: content_digest({"basis": self.basis(key)}) for key in self.layout.keys}
        return content_digest({}, {"kind": self.kind, "bases": bases})

    def metadata(self) -> dict[str, Any]:
        """Return what a file states of the map, as JSON values."""
        return {"kind": self.kind, "settings": self.settings(), "digest": self.digest}

    def __deepcopy__(self, memo: dict) -> Self:
        """A value needs no copy."""
        return self


@dataclass(frozen=True)
class LoraPair:
    """The two matrices of one LoRA layer, and the base weight under them.

    Attributes:
        key_a, key_b: Their names in the adapter's file.
        a, b: Shapes (r, in) and (out, r).
        base: Returns the base weight. Shape (out, in).
    """

    key_a: str
    key_b: str
    a: Tensor
    b: Tensor
    base: Callable[[], Tensor]


@dataclass(frozen=True)
class Beginning:
    """What a method begins training with.

    Attributes:
        map: From coefficients to weights.
        coefficients: Of each weight that the map makes. Float32.
        fixed: Values of the weights that neither train nor have coefficients.
    """

    map: CoefficientMap
    coefficients: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]


class CoefficientMethod(Protocol):
    """Settings of a family of maps."""

    def begin(self, pairs: list[LoraPair]) -> Beginning:
        """Return what training the coefficients of these layers begins with. LoRA's update is zero, or nearly so, there.

        Raises:
            SwagError: It cannot be done for these layers.
        """


def read_map(
    document: Any,
    layout: WeightLayout,
    tensors: Mapping[str, Tensor],
    coefficient_shapes: Mapping[str, tuple[int, ...]],
    *,
    where: str,
) -> CoefficientMap:
    """Undo `CoefficientMap.metadata` and `tensors`: make the bases again, and compare them with those of the file's maker.

    Args:
        document: What the file states.
        layout: Keys and shapes of the weights that are made of coefficients.
        tensors: The map's own.
        coefficient_shapes: Of each weight's coefficients in the file.
        where: The file, for errors.

    Raises:
        PosteriorFormatError: There is no such map, or its bases are others here.
    """
    if not isinstance(document, dict) or set(document) != {"kind", "settings", "digest"}:
        raise PosteriorFormatError(f"{where} should state kind, settings and digest of the bases of its coefficients.")
    kind = MAPS.get(document["kind"]) if isinstance(document["kind"], str) else None
    if kind is None:
        raise PosteriorFormatError(
            f"{where} has coefficients over bases of kind {shortened(repr(document['kind']))}; this version knows {sorted(MAPS)}."
        )
    made = kind.from_settings(layout, document["settings"], tensors, where=where)
    # Before the bases are made, which may be large: coefficients that are in the file bound how many there can be.
    wrong = next((key for key, shape in coefficient_shapes.items() if made.coefficient_shape(key) != shape), None)
    if wrong is not None:
        raise PosteriorFormatError(
            f"{where} has coefficients of shape {list(coefficient_shapes[wrong])[:4]} for {shortened(repr(wrong))}; its bases ask for "
            f"{list(made.coefficient_shape(wrong))}."
        )
    if made.digest != document["digest"]:
        raise PosteriorFormatError(
            f"{where} has coefficients over bases with the digest {shortened(repr(document['digest']))}, and the bases that "
            f"{made.settings()} gives here have {made.digest[:12]}...: over other bases the coefficients are other weights. Was the record "
            "edited? Load the file again with force_download=True, or collect again."
        )
    return made
