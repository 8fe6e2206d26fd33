"""NOLA: LoRA matrices as linear combinations of random matrices, which a seed and the weight's name give everywhere alike.

Koohpayegani et al. 2024, arXiv:2310.02556:  A = sum_k a_k A_k,  B = sum_k b_k B_k;  only a and b train.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, SwagError, shortened
from swag_trainer.posterior.coefficient_map import Beginning, CoefficientMap, LoraPair
from swag_trainer.posterior.documents import read_dataclass
from swag_trainer.posterior.layout import WeightLayout

# Raw 64-bit output of numpy's Philox4x64, which NumPy promises never to change (NEP 19), unlike its normal variables and torch's generators, whose
# numbers depend on version, device and vector instructions. Each gives two whole numbers below 2^24, which float32 holds exactly.
GENERATOR = "numpy-philox4x64-uniform24"
# A file of a few kilobytes should not make its reader compute for hours.
_MOST = 4096
# Numbers of the bases of one weight (2 GiB), which are in memory together, and of all.
_LARGEST_BASIS, _LARGEST_BASES = 2**29, 2**33
_BLOCK = 2**20


@dataclass(frozen=True)
class Nola:
    """Settings of NOLA for `swag_trainer.train_coefficients`; the bases follow from them and from the names of the weights.

    Attributes:
        num_coefficients: K, of each matrix A and each matrix B; a layer trains 2 K numbers.
        seed: Of the bases, and of the coefficients that training begins with.
        generator: Name of the rule that makes numbers of the seed; this version knows one.
    """

    num_coefficients: int = 50
    seed: int = 0
    generator: str = GENERATOR

    def __post_init__(self) -> None:
        if not 1 <= self.num_coefficients <= _MOST:
            raise ValueError(f"Nola(num_coefficients=...) must be 1 to {_MOST}, got {self.num_coefficients}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"Nola(seed=...) must be 0 to 2**63 - 1, got {self.seed}.")
        if self.generator != GENERATOR:
            raise ValueError(f"This version makes NOLA's bases with the generator {GENERATOR!r}, got {self.generator[:50]!r}.")

    def begin(self, pairs: list[LoraPair]) -> Beginning:
        """Return random coefficients of variance 1/K for A, which is then as large as LoRA's, and zeros for B.

        Raises:
            SwagError: The bases would be too large.
        """
        layout = WeightLayout.of(
            {key: weight for pair in pairs for key, weight in ((pair.key_a, pair.a), (pair.key_b, pair.b))}
        )
        if problem := _oversized(layout, self.num_coefficients):
            raise SwagError(f"Nola(num_coefficients={self.num_coefficients}) for this adapter {problem} Take fewer.")
        bound, count = (3 / self.num_coefficients) ** 0.5, (1, self.num_coefficients)
        coefficients = {pair.key_b: torch.zeros(count) for pair in pairs}
        coefficients |= {pair.key_a: uniform(count, bound, seed=self.seed, name=f"{pair.key_a} begins") for pair in pairs}
        return Beginning(NolaMap(layout, self), coefficients, {})


@dataclass(frozen=True)
class NolaMap(CoefficientMap):
    """A weight is the sum of K random matrices times a coefficient each.

    Attributes:
        layout: Keys and shapes of the weights.
        rule: What the bases follow from.
    """

    kind: ClassVar[str] = "nola"
    title: ClassVar[str] = "NOLA"

    layout: WeightLayout
    rule: Nola

    def basis(self, key: str) -> Tensor:
        """Return K matrices with entries uniform in +-1/sqrt(columns), as LoRA's A begins. Shape (K, *shape)."""
        shape = self.layout.shapes[self.layout.keys.index(key)]
        return uniform((self.rule.num_coefficients, *shape), shape[-1] ** -0.5, seed=self.rule.seed, name=key)

    @staticmethod
    def combine(coefficients: Tensor, basis: Tensor) -> Tensor:
        """Return the sum. Shapes (..., 1, K) and (K, *shape) to (..., *shape)."""
        return torch.tensordot(coefficients.squeeze(-2), basis, dims=1)

    def coefficient_shape(self, key: str) -> tuple[int, ...]:
        """Return (1, K): PEFT takes a vector in the place of a matrix for a file that was cut off."""
        return (1, self.rule.num_coefficients)

    def settings(self) -> dict[str, Any]:
        """Return number of coefficients, seed and generator."""
        return asdict(self.rule)

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: the bases follow from the settings."""
        return {}

    @classmethod
    def from_settings(cls, layout: WeightLayout, settings: Any, tensors: Mapping[str, Tensor], *, where: str) -> Self:
        """Undo `settings`; nothing about it is trusted.

        Raises:
            PosteriorFormatError: It is not so.
        """
        if tensors or any(len(shape) != 2 or 0 in shape for shape in layout.shapes):
            raise PosteriorFormatError(
                f"{where} has bases of NOLA with tensors of their own, or of weights that are no matrices."
            )
        rule = read_dataclass(Nola, settings, where=where)
        if problem := _oversized(layout, rule.num_coefficients):
            raise PosteriorFormatError(f"{where} {problem}")
        return cls(layout, rule)


def _oversized(layout: WeightLayout, count: int) -> str | None:
    """Return how many numbers the bases of so many coefficients have where they are too many to be made; None where they are not."""
    key, size = max(zip(layout.keys, layout.sizes, strict=True), key=lambda weight: weight[1])
    if size * count > _LARGEST_BASIS:
        return f"asks for bases of {size * count:,} numbers for {shortened(repr(key))}; at most {_LARGEST_BASIS:,} are made."
    if layout.size * count > _LARGEST_BASES:
        return f"asks for bases of {layout.size * count:,} numbers in all; at most {_LARGEST_BASES:,} are made."
    return None


def uniform(shape: tuple[int, ...], bound: float, *, seed: int, name: str) -> Tensor:
    """Return numbers that are uniform in [-bound, bound), from a seed and a name alone: the same bits on every machine. Float32."""
    size = math.prod(shape)
    numbers, key = np.empty(size + size % 2, dtype=np.float32), hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16]
    philox = np.random.Philox(key=int.from_bytes(key, "little"))
    for start in range(0, size, _BLOCK):
        block = numbers[start : start + _BLOCK]
        block[:] = philox.random_raw(len(block) // 2).astype("<u8").view("<u4") >> 8
    numbers -= np.float32(2**23)
    numbers *= np.float32(bound * 2.0**-23)
    return torch.from_numpy(numbers[:size]).reshape(shape)
