"""Sampling settings, and the interface of what turns weight draws into logits."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypedDict, get_args

from torch import Tensor

from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.gaussian import checked_num_samples, checked_scale
from swag_trainer.posterior.tuning import Center, Tuning


class SamplingChanges(TypedDict, total=False):
    """The fields of `Sampling` as keywords of a call."""

    num_samples: int
    seed: int
    scale: float | None
    temperature: float | None
    design: Design
    dropout: bool | None
    center: Center | None


@dataclass(frozen=True)
class Sampling:
    """How a posterior is drawn from and its draws are averaged: one value for predictor, pipeline, tuning, cards and command line.

    Attributes:
        num_samples: S, how many draws.
        seed: The draws, and the masks of dropout, depend on this and on nothing else.
        scale: Factor of the covariance; None for the posterior's own, 0 for one pass at the centre.
        temperature: What each draw's logits are divided by before they become probabilities; not for a regression. None for the one
            that `swag_trainer.tune` chose, which belongs to the scale, the centre and the dropout that it chose: 1 for any others, or
            where the posterior was not tuned.
        design: "matched" (10 draws do the work of 30 independent ones) or "iid".
        dropout: Drop out while drawing, one mask per draw (Gal and Ghahramani 2016, arXiv:1506.02142). Over a `PointPosterior`, or with
            ``scale=0``, this is MC dropout. None for what `swag_trainer.tune` chose at the posterior's own scale: False at any other,
            or where the posterior was not tuned.
        center: The weights around which is drawn: "mean" (SWA), "tail" (the mean of the last snapshots) or "last" (the last snapshot), see
            `WeightPosterior.center`. None for what `swag_trainer.tune` chose at the posterior's own scale: the mean at any other, or where
            the posterior was not tuned.

    Raises:
        SwagError: A value is out of range.
    """

    num_samples: int = 10
    seed: int = 0
    scale: float | None = None
    temperature: float | None = None
    design: Design = "matched"
    dropout: bool | None = None
    center: Center | None = None

    def __post_init__(self) -> None:
        checked_num_samples(self.num_samples)
        if self.scale is not None:
            checked_scale(self.scale)
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise SwagError(f"temperature divides the logits and must be finite and > 0, got {self.temperature}.")
        if self.design not in get_args(Design):
            raise SwagError(f"design must be one of {get_args(Design)}, got {self.design!r}.")
        if self.center is not None and self.center not in get_args(Center):
            raise SwagError(f"center must be one of {get_args(Center)} or None, got {self.center!r}.")

    @classmethod
    def field_names(cls) -> list[str]:
        """Return the names of all settings."""
        return [item.name for item in fields(cls)]

    def changed(self, changes: Mapping[str, Any], *, also: Iterable[str] = ()) -> Sampling:
        """Return the settings with some of them changed.

        Args:
            changes: New values by field.
            also: Further names that the caller takes, to suggest one of them where a name is misspelt.

        Raises:
            SwagError: No field has that name, or a value is out of range.
        """
        names = self.field_names()
        for name in changes:
            if name not in names:
                close = difflib.get_close_matches(name, [*names, *also], n=1)
                hint = f"Did you mean {close[0]!r}?" if close else f"The settings of Sampling are {', '.join(names)}."
                raise SwagError(f"There is no setting {name!r}. {hint}")
        return replace(self, **changes)

    def scale_for(self, posterior: WeightPosterior) -> float:
        """Return the scale to draw with."""
        return posterior.scale if self.scale is None else float(self.scale)

    def resolved(self, posterior: WeightPosterior) -> Sampling:
        """Return the settings with the posterior's scale, centre, dropout and temperature in the place of None.

        Raises:
            SwagError: The posterior does not have the centre.
        """
        tuning = self._tuning_of(posterior)
        center: Center = self.center or ("mean" if tuning is None else tuning.center)
        dropout = self.dropout if self.dropout is not None else tuning is not None and tuning.dropout
        if center not in posterior.centers:
            raise SwagError(
                f"A posterior of kind {posterior.kind!r} and what this one keeps have the centres {posterior.centers}, got center={center!r}. "
                "The tail and the last snapshot need kept deviations, rank=2 or more."
            )
        temperature = self.temperature
        if temperature is None:
            is_tuned = tuning is not None and (center, dropout) == (tuning.center, tuning.dropout)
            temperature = tuning.temperature if is_tuned else 1.0
        return replace(self, scale=self.scale_for(posterior), temperature=float(temperature), dropout=dropout, center=center)

    def _tuning_of(self, posterior: WeightPosterior) -> Tuning | None:
        """Return the posterior's tuning where these settings draw at the scale that it chose."""
        return posterior.tuning if self.scale_for(posterior) == posterior.scale else None


class LogitSampler(Protocol):
    """Logits of a batch under S weight draws: packed, sequential, linearised, with dropout. Not for several threads at once."""

    def __call__(self, batch: Mapping[str, Tensor], draws: Tensor | None = None) -> Tensor:
        """Return the logits of every draw. Shape (S, E, C): E events, usually the B rows of the batch.

        Args:
            batch: What the model takes: tensors with the rows in their first dimension.
            draws: Other draws than those the sampler was made with. Shape (S', P).
        """
