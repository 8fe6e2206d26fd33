"""The methods that an evaluation compares: how each is predicted with, what it needs, and the number of trainings behind it.

A new method is one function that takes a `Setting` and returns a `Plan`, and its entry in `REGISTRY`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from swag_trainer.errors import SwagError
from swag_trainer.fitting.fit import FitMethod, fit_posterior
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.mixture import PosteriorMixture
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.prediction.sampler import Sampling


class NotApplicableError(SwagError):
    """A method does not apply to this model or this data; the message gives the reason."""


class FitFailedError(SwagError):
    """A posterior could not be fitted to this adapter and these examples; the message gives the reason."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What methods are made from.

    Attributes:
        model: The PEFT model, or a classifier with an adapter that adds 0.
        has_adapter: Whether the adapter is the model's own.
        posterior: The posterior; None for a model without.
        point: The point estimate at the weights in ``model``.
        sampling: How the posterior is drawn from.
        train: Training examples with labels, for the methods that are fitted to them.
        validation: Examples with labels, for temperatures and for the prior of Laplace.
        reading: ``batch_size``, ``data_collator`` and ``progress``, as for `MonteCarloPredictor`.
    """

    model: nn.Module
    has_adapter: bool
    posterior: WeightPosterior | None
    point: PointPosterior
    sampling: Sampling
    train: Sequence[Mapping[str, Any]] | None
    validation: Sequence[Mapping[str, Any]] | None
    reading: Mapping[str, Any]

    @property
    def single_pass(self) -> Sampling:
        """One pass at the mean, of each member if there are several."""
        return replace(self.sampling, scale=0.0, temperature=1.0, dropout=False, center="mean")

    def own(self) -> WeightPosterior:
        """Return the posterior.

        Raises:
            NotApplicableError: The model has none.
        """
        if self.posterior is None:
            raise NotApplicableError("Draws, and their mean, need a posterior, and this model has none.")
        return self.posterior


@dataclass(frozen=True)
class Plan:
    """How a method predicts.

    Attributes:
        posterior: What is drawn from.
        sampling: How.
        fits_temperature: Whether a temperature is fitted to the validation examples.
        is_fitted: Whether something was fitted after the training.
        num_trainings: How many trainings it needs.
    """

    posterior: WeightPosterior
    sampling: Sampling
    fits_temperature: bool = False
    is_fitted: bool = False
    num_trainings: int = 1


Prepare = Callable[[Setting], Plan]


def _last(setting: Setting) -> Plan:
    return Plan(setting.point, setting.single_pass)


def _dropout(setting: Setting) -> Plan:
    return Plan(setting.point, replace(setting.single_pass, dropout=True))


def _mean(setting: Setting) -> Plan:
    return Plan(setting.own(), setting.single_pass, num_trainings=_count_members(setting.own()))


def _draws(setting: Setting) -> Plan:
    return Plan(setting.own(), setting.sampling, num_trainings=_count_members(setting.own()))


def _ensemble(setting: Setting) -> Plan:
    mixture = setting.posterior
    if not isinstance(mixture, PosteriorMixture):
        raise NotApplicableError(
            "An ensemble needs several trainings, and this model has one: swag-trainer train --members, or PosteriorMixture."
        )
    points = [PointPosterior.at(_final_weights(member), member) for member in mixture.members]
    return Plan(PosteriorMixture.of(points), setting.single_pass, num_trainings=len(points))


def _with_temperature(prepare: Prepare) -> Prepare:
    def prepared(setting: Setting) -> Plan:
        if setting.validation is None:
            raise NotApplicableError(
                "A temperature needs validation examples with labels, which the model was not trained on: validation=..., --validation-split."
            )
        return replace(prepare(setting), fits_temperature=True, is_fitted=True)

    return prepared


def _fitted(method: FitMethod, *, needs_held_out: bool = False) -> Prepare:
    def prepared(setting: Setting) -> Plan:
        if not setting.has_adapter:
            raise NotApplicableError("A posterior is fitted to an adapter, and this model has none.")
        if setting.train is None:
            raise NotApplicableError("A posterior is fitted to training examples with labels: train=..., --train-split.")
        if needs_held_out and setting.validation is None:
            raise NotApplicableError(
                "Its prior needs validation examples with labels, which the model was not trained on: validation=..., --validation-split."
            )
        sampling = Sampling(setting.sampling.num_samples, setting.sampling.seed, design=setting.sampling.design)
        try:
            posterior = fit_posterior(
                setting.model,
                setting.train,
                method=method,
                held_out=setting.validation if needs_held_out else None,
                sampling=sampling,
                **setting.reading,
            )
        except SwagError as error:
            raise FitFailedError(str(error)) from error
        return Plan(posterior, sampling, is_fitted=True)

    return prepared


# By the names in tables, in their order. The posterior's own two are named after its family, see `entries_for`.
_MEAN, _DRAWS = "SWA", "SWAG"
REGISTRY: dict[str, Prepare] = {
    "MAP": _last,
    "MAP, temperature": _with_temperature(_last),
    _MEAN: _mean,
    _DRAWS: _draws,
    "MC dropout": _dropout,
    "MC dropout, temperature": _with_temperature(_dropout),
    "Ensemble": _ensemble,
    "TFB": _fitted("tfb"),
    "Laplace (head)": _fitted("laplace-head", needs_held_out=True),
    "Laplace (LoRA)": _fitted("laplace", needs_held_out=True),
}


def entries_for(posterior: WeightPosterior | None) -> dict[str, Prepare]:
    """Return the entries of the registry under the names that they have for a posterior.

    "SWAG" is the posterior's ``title``, and "SWA" is "MultiSWA" for a mixture, whose members' means are averaged by their predictions.
    """
    names = {}
    if posterior is not None:
        names = {_DRAWS: posterior.title, _MEAN: "MultiSWA" if isinstance(posterior, PosteriorMixture) else _MEAN}
    entries: dict[str, Prepare] = {}
    for name, prepare in REGISTRY.items():
        entries.setdefault(names.get(name, name), prepare)  # a posterior of TFB keeps its place, and is not fitted again
    return entries


def default_names(posterior: WeightPosterior | None) -> list[str]:
    """Return the names of all methods that may apply.

    The mean of a point estimate is the point itself, without its temperature: it is predicted with where it is asked for.
    """
    is_point = posterior is not None and posterior.is_point
    return [name for name, prepare in entries_for(posterior).items() if not (is_point and prepare is _mean)]


def _count_members(posterior: WeightPosterior) -> int:
    return len(posterior.members) if isinstance(posterior, PosteriorMixture) else 1


def _final_weights(member: WeightPosterior) -> Any:
    """Return the weights that a member's training ended with where they are known, else its mean. Shape (P,)."""
    last = member.last_snapshot()
    return member.mean_vector() if last is None else last
