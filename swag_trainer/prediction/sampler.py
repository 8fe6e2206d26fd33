"""Sampling settings, and the interface of what turns weight draws into logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.gaussian import checked_num_samples, checked_scale


@dataclass(frozen=True)
class Sampling:
    """How a posterior is drawn from and its draws are averaged: one value for predictor, pipeline, tuning, cards and command line.

    Attributes:
        num_samples: S, how many draws.
        seed: The draws depend on this and on nothing else.
        scale: Factor of the covariance; None for the posterior's own, 0 for one pass at the mean.
        temperature: What each draw's logits are divided by before they become probabilities; not for a regression. None for the one
            that `swag_trainer.tune` chose, which belongs to the posterior's own scale: 1 at any other, or where it was not tuned.
        design: "matched" (10 draws do the work of 30 independent ones) or "iid".

    Raises:
        SwagError: A number is out of range.
    """

    num_samples: int = 10
    seed: int = 0
    scale: float | None = None
    temperature: float | None = None
    design: Design = "matched"

    def __post_init__(self) -> None:
        checked_num_samples(self.num_samples)
        if self.scale is not None:
            checked_scale(self.scale)
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise SwagError(f"temperature divides the logits and must be finite and > 0, got {self.temperature}.")

    def scale_for(self, posterior: WeightPosterior) -> float:
        """Return the scale to draw with."""
        return posterior.scale if self.scale is None else float(self.scale)

    def temperature_for(self, posterior: WeightPosterior) -> float:
        """Return the temperature to divide by: the one asked for, the posterior's own at the posterior's own scale, or 1."""
        if self.temperature is not None:
            return float(self.temperature)
        return posterior.temperature if self.scale_for(posterior) == posterior.scale else 1.0


class LogitSampler(Protocol):
    """Logits of a batch under S weight draws: packed, sequential, linearised."""

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of every draw. Shape (S, E, C): E events, usually the B rows of the batch."""
