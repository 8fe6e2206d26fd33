"""Acting on it: whether a pipeline answers or abstains, and which labels it cannot rule out.

Thresholds and quantiles were calibrated by `SwagPosterior.tune` for the answers of certain draws at a certain scale and temperature. They
say nothing about other answers, and are refused for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from swag_trainer.errors import SwagError
from swag_trainer.metrics.conformal import ConformalSets
from swag_trainer.posterior.gaussian import checked_scale
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.posterior.tuning import CalibratedThreshold, Tuning
from swag_trainer.prediction.sampler import Sampling

_WAYS_TO_ABSTAIN = ("abstain_below", "risk", "coverage")


@dataclass(frozen=True)
class Request:
    """What a pipeline, or one call of it, is asked for. The options are those of the pipeline; None is "not asked"."""

    num_samples: int | None = None
    seed: int | None = None
    scale: float | None = None
    temperature: float | None = None
    abstain_below: float | None = None
    risk: float | None = None
    coverage: float | None = None
    prediction_set: float | None = None
    prediction_set_method: str | None = None

    @classmethod
    def option_names(cls) -> list[str]:
        """What can be asked for."""
        return [item.name for item in fields(cls)]

    def updated(self, options: dict[str, Any]) -> Request:
        """Return this request with the options that are not None put over it; one way to abstain replaces another.

        Raises:
            SwagError: Two ways to abstain at once, or a number out of range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        ways = [name for name in _WAYS_TO_ABSTAIN if name in given]
        if len(ways) > 1:
            raise SwagError(f"{ways[0]} and {ways[1]} both say when to abstain; pass one of them.")
        _check_range(given)
        return replace(self, **(dict.fromkeys(_WAYS_TO_ABSTAIN) | given if ways else given))

    def resolved(self, posterior: SwagPosterior) -> Request:
        """Return this request with draws, scale and temperature settled: those the posterior was tuned with where not asked otherwise."""
        tuning = posterior.tuning
        return replace(
            self,
            num_samples=self.num_samples or (10 if tuning is None else tuning.num_samples),
            seed=self.seed if self.seed is not None else (0 if tuning is None else tuning.seed),
            scale=posterior.scale if self.scale is None else float(self.scale),
            temperature=Sampling(scale=self.scale, temperature=self.temperature).temperature_for(posterior),
        )


@dataclass(frozen=True)
class Decision:
    """What is done with an answer.

    Attributes:
        threshold: Abstain where the top label's score is below this.
        because: Where the threshold comes from, as the end of a sentence.
        sets: What makes the prediction set; None where none was asked for.
    """

    threshold: float = 0.0
    because: str = ""
    sets: ConformalSets | None = None

    def __bool__(self) -> bool:
        """Whether anything is to be decided."""
        return bool(self.threshold > 0) or self.sets is not None

    def act(self, rows: list[dict[str, Any]], probabilities: np.ndarray, labels: dict[int, str]) -> list[dict[str, Any]]:
        """Return the rows of an answer, the first one of the top label, with the first one decided upon.

        Args:
            rows: ``label``, ``score`` and so on, the likeliest first.
            probabilities: Of all classes. Shape (C,).
            labels: Their names.
        """
        first = dict(rows[0])
        score = float(confidence(probabilities[None])[0])
        if score < self.threshold:
            first |= {"label": None, "top_label": first["label"]}
            first["reason"] = f"The score {score:.3f} of the likeliest label is below {self.threshold:.3f}, {self.because}."
        if self.sets is not None:
            chosen = self.sets.sets(probabilities[None])[0]
            order = np.argsort(-probabilities, kind="stable")
            first["prediction_set"] = [labels[index] for index in order.tolist() if chosen[index]]
        return [first, *rows[1:]]


def confidence(probabilities: np.ndarray) -> np.ndarray:
    """What thresholds are compared with: the top label's averaged probability, at most 1 also after rounding. (N, C) -> (N,)."""
    return np.minimum(probabilities.max(axis=1), 1.0)


def decide(request: Request, posterior: SwagPosterior) -> Decision:
    """Look up what a request asks to be decided.

    Raises:
        SwagError: It needs a tuned posterior, a level that was calibrated, or the draws, scale and temperature of the calibration.
    """
    threshold, because, sets = 0.0, "", None
    if request.abstain_below is not None:
        threshold, because = request.abstain_below, "the abstain_below that was asked for"
    for goal in ("risk", "coverage"):
        if (target := getattr(request, goal)) is not None:
            tuning = _calibrated(goal, request, posterior)
            record = _threshold(tuning, goal, target)
            threshold, because = float(record.threshold), _origin(tuning, record)
    if request.prediction_set is not None:
        tuning = _calibrated("prediction_set", request, posterior)
        sets = _sets(tuning, request.prediction_set, request.prediction_set_method or "aps")
    return Decision(threshold, because, sets)


def _check_range(given: dict[str, Any]) -> None:
    if given.get("num_samples", 1) < 1:
        raise SwagError(
            "num_samples is the number of draws and must be at least 1, "
            f"got {given['num_samples']}. For the mean alone pass scale=0."
        )
    checked_scale(given.get("scale", 1.0))
    for name in (*_WAYS_TO_ABSTAIN, "prediction_set"):
        if not 0 <= given.get(name, 0) <= 1:
            raise SwagError(f"{name} is a share or a probability between 0 and 1, got {given[name]}.")


def _calibrated(option: str, request: Request, posterior: SwagPosterior) -> Tuning:
    """Return the posterior's tuning, if it is about the answers that are asked for."""
    tuning = posterior.tuning
    if tuning is None:
        raise SwagError(
            f"{option}=... needs what swag_trainer.tune(posterior, model, data) calibrates on held-out data, and this posterior was not tuned. "
            "Tune it and save it again, or choose a score yourself with abstain_below=..."
        )
    asked = request.resolved(posterior)
    for name, value in {
        "num_samples": tuning.num_samples,
        "seed": tuning.seed,
        "scale": posterior.scale,
        "temperature": tuning.temperature,
    }.items():
        if getattr(asked, name) != value:
            raise SwagError(
                f"{option}=... was calibrated for the answers with {name}={value:g}, this call asks for {name}={getattr(asked, name):g}, "
                f"whose scores mean something else. Leave {name} out, or tune the posterior with it."
            )
    return tuning


def _threshold(tuning: Tuning, goal: str, target: float) -> CalibratedThreshold:
    records = [record for record in tuning.thresholds if record.goal == goal]
    record = next((record for record in records if math.isclose(record.target, target)), None)
    if record is None:
        there = ", ".join(f"{record.target:g}" for record in records) or "none"
        raise SwagError(
            f"No threshold was calibrated for {goal}={target:g}; there are: {there}. Tune with {goal}s=({target:g},)."
        )
    if record.threshold is None:
        promise = "" if record.level is None else f" that can be promised with probability {record.level:g}"
        raise SwagError(
            f"No threshold has a risk of at most {target:g}{promise}: {_rows(tuning)} were too few or too often answered wrongly. "
            "Ask for a higher risk, or tune with more rows" + (", or with confidence=None for no promise." if promise else ".")
        )
    return record


def _sets(tuning: Tuning, level: float, method: str) -> ConformalSets:
    for record in tuning.conformal:
        if math.isclose(record.level, level) and record.method == method:
            quantile = math.inf if record.quantile is None else record.quantile
            return ConformalSets(
                method, quantile, record.level, tuning.num_calibration, record.penalty, record.regularised_rank
            )
    there = ", ".join(f"{record.level:g} ({record.method})" for record in tuning.conformal) or "none"
    raise SwagError(
        f"No prediction sets were calibrated for prediction_set={level:g} with method {method!r}; there are: {there}."
    )


def _origin(tuning: Tuning, record: CalibratedThreshold) -> str:
    if record.goal == "coverage":
        return f"the score from which on at least {record.target:g} of {_rows(tuning)} were answered"
    if record.level is None:
        return f"the score from which on at most {record.target:g} of the answers for {_rows(tuning)} were wrong"
    return (
        f"from which on at most {record.target:g} of the answers are wrong, with probability {record.level:g} "
        f"(calibrated on {_rows(tuning)})"
    )


def _rows(tuning: Tuning) -> str:
    return f"{tuning.num_calibration} rows of {tuning.dataset!r}"
