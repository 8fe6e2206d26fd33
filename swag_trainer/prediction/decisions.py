"""Selective prediction and conformal sets: the options of a pipeline, and what is decided upon a prediction.

Thresholds and quantiles were calibrated by `swag_trainer.tune` for the predictions of certain draws at a certain scale and temperature.
They do not hold for other predictions, and are refused for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any

import numpy as np

from swag_trainer.errors import SwagError, shortened
from swag_trainer.metrics.conformal import ConformalMethod, ConformalSets
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.tuning import CalibratedThreshold, Tuning
from swag_trainer.prediction.draw_logits import Method, check_method
from swag_trainer.prediction.monte_carlo import checked_max_error
from swag_trainer.prediction.ood import check_ood_score
from swag_trainer.prediction.sampler import Sampling

# Sets of "aps" and "raps" are not randomised here: with two classes they hold both labels once the accuracy is below the level.
DEFAULT_SETS: ConformalMethod = "lac"
_WAYS_TO_ABSTAIN = ("abstain_below", "risk", "coverage")


@dataclass(frozen=True)
class PredictionOptions:
    """What a pipeline, or one call of it, was asked for.

    Attributes:
        sampling: The fields of `Sampling` that were asked for, by name.
        method, max_error: As in `MonteCarloPredictor`.
        abstain_below, risk, coverage, ood, prediction_set, prediction_set_method: As in `SwagTextClassificationPipeline`; None where not
            asked.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    method: Method = "monte_carlo"
    max_error: float | None = None
    abstain_below: float | None = None
    risk: float | None = None
    coverage: float | None = None
    ood: float | None = None
    prediction_set: float | None = None
    prediction_set_method: str | None = None

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of all options; those of `Sampling` come first."""
        return [*Sampling.field_names(), *(item.name for item in fields(cls) if item.name != "sampling")]

    def updated(self, options: Mapping[str, Any]) -> PredictionOptions:
        """Return these options with those that are not None in their place; one way to abstain replaces another.

        Raises:
            SwagError: Two ways to abstain at once, or a number out of range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        ways = [name for name in _WAYS_TO_ABSTAIN if name in given]
        if len(ways) > 1:
            raise SwagError(f"{ways[0]} and {ways[1]} both set when to abstain; pass one of them.")
        for name in (*_WAYS_TO_ABSTAIN, "ood", "prediction_set"):
            value = given.get(name, 0)
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise SwagError(f"{name} is a fraction or a probability between 0 and 1, got {shortened(repr(value))}.")
        checked_max_error(given.get("max_error"))
        asked = {name: given.pop(name) for name in Sampling.field_names() if name in given}
        Sampling().changed(asked)
        given["sampling"] = {**self.sampling, **asked}
        return replace(self, **(dict.fromkeys(_WAYS_TO_ABSTAIN) | given if ways else given))

    def resolved(self, posterior: WeightPosterior) -> Sampling:
        """Return the sampling settings, with those that the posterior was tuned with where nothing else was asked for."""
        tuning = posterior.tuning
        tuned = Sampling() if tuning is None else Sampling(tuning.num_samples, tuning.seed, design=tuning.design)
        return tuned.changed(self.sampling).resolved(posterior)


@dataclass(frozen=True)
class Decision:
    """What is done with a prediction.

    Attributes:
        threshold: Abstain where the top label's score is below this.
        reason: Where the threshold comes from, as the end of a sentence.
        sets: Makes the prediction set; None where none was asked for.
        ood: Abstain where the OOD score is at least this.
        num_held_out: How many examples that score is a fraction of.
    """

    threshold: float = 0.0
    reason: str = ""
    sets: ConformalSets | None = None
    ood: float | None = None
    num_held_out: int = 0

    def __bool__(self) -> bool:
        """Whether anything is to be decided."""
        return bool(self.threshold > 0) or self.sets is not None or self.ood is not None

    def apply(
        self,
        rows: list[dict[str, Any]],
        probabilities: np.ndarray,
        labels: dict[int, str],
        *,
        ood_score: float | None = None,
    ) -> list[dict[str, Any]]:
        """Return the labels of a prediction, the first one the likeliest, with the first one decided upon.

        Args:
            rows: ``label``, ``score`` and so on, the likeliest first.
            probabilities: Of all classes. Shape (C,).
            labels: Their names.
            ood_score: Of the prediction; needed where ``ood`` is set.
        """
        first = dict(rows[0])
        score = float(confidence(probabilities[None])[0])
        reasons = []
        if score < self.threshold:
            reasons.append(f"The score {score:.3f} of the likeliest label is below {self.threshold:.3f}, {self.reason}.")
        if self.ood is not None and ood_score is not None and ood_score >= self.ood:
            reasons.append(
                f"The OOD score {ood_score:.3f} is at least {self.ood:g}: the features lie further from every class than those of that "
                f"fraction of {self.num_held_out} held-out examples."
            )
        if reasons:
            first |= {"label": None, "top_label": first["label"], "reason": " ".join(reasons)}
        if self.sets is not None:
            chosen = self.sets.sets(probabilities[None])[0]
            order = np.argsort(-probabilities, kind="stable")
            first["prediction_set"] = [labels[index] for index in order.tolist() if chosen[index]]
        return [first, *rows[1:]]


def confidence(probabilities: np.ndarray) -> np.ndarray:
    """Return what thresholds are compared with: the top label's averaged probability, at most 1 also after rounding. (N, C) -> (N,)."""
    return np.minimum(probabilities.max(axis=1), 1.0)


def decide(options: PredictionOptions, posterior: WeightPosterior) -> Decision:
    """Look up what the options ask to be decided.

    Raises:
        SwagError: They need a tuned posterior, a level that was calibrated, or the draws, scale and temperature of the calibration; or
            the posterior has no OOD score.
    """
    threshold, reason, sets = 0.0, "", None
    if options.abstain_below is not None:
        threshold, reason = options.abstain_below, "the abstain_below that was asked for"
    for goal in ("risk", "coverage"):
        if (target := getattr(options, goal)) is not None:
            tuning = _calibrated(goal, options, posterior)
            record = _threshold(tuning, goal, target)
            threshold, reason = float(record.threshold), _origin(tuning, record)
    if options.prediction_set is not None:
        tuning = _calibrated("prediction_set", options, posterior)
        sets = _sets(tuning, options.prediction_set, options.prediction_set_method or DEFAULT_SETS)
    if options.ood is None or options.ood == 1:
        return Decision(threshold, reason, sets)
    check_ood_score(posterior, options.ood)
    assert posterior.features is not None
    return Decision(threshold, reason, sets, options.ood, posterior.features.num_held_out)


def check_options(options: PredictionOptions, posterior: WeightPosterior) -> None:
    """Refuse what cannot be done with a posterior, before anything is predicted.

    Raises:
        SwagError: As `decide`, or the method does not go with the posterior or with other options.
    """
    decide(options, posterior)
    check_method(options.method, posterior, options.resolved(posterior), in_blocks=options.max_error is not None)


def _calibrated(option: str, options: PredictionOptions, posterior: WeightPosterior) -> Tuning:
    """Return the posterior's tuning, if it was calibrated for the predictions that are asked for."""
    tuning = posterior.tuning
    if tuning is None:
        raise SwagError(
            f"{option}=... needs what swag_trainer.tune(posterior, model, data) calibrates on held-out data, and this posterior was not tuned. "
            "Tune it and save it again, or choose a score yourself with abstain_below=..."
        )
    asked = options.resolved(posterior)
    tuned = Sampling(tuning.num_samples, tuning.seed, design=tuning.design).resolved(posterior)
    differing = [(name, getattr(tuned, name), getattr(asked, name)) for name in Sampling.field_names()]
    differing += [("method", "monte_carlo", options.method), ("max_error", None, options.max_error)]
    for name, calibrated, value in differing:
        if value != calibrated:
            raise SwagError(
                f"{option}=... was calibrated for the predictions with {name}={_text(calibrated)}, this call asks for {name}={_text(value)}, "
                f"whose scores mean something else. Leave {name} out, or tune the posterior with it."
            )
    return tuning


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else repr(value)


def _threshold(tuning: Tuning, goal: str, target: float) -> CalibratedThreshold:
    records = [record for record in tuning.thresholds if record.goal == goal]
    record = next((record for record in records if math.isclose(record.target, target)), None)
    if not records:
        raise SwagError(
            f"The tuning calibrated no threshold for a {goal}: it was asked for none, or the model's labels do not exclude each other, so that "
            "none is the likeliest one, which abstaining withholds."
        )
    if record is None:
        there = ", ".join(f"{record.target:g}" for record in records)
        raise SwagError(
            f"No threshold was calibrated for {goal}={target:g}; there are: {there}. Tune with {goal}s=({target:g},)."
        )
    if record.threshold is None:
        promise = "" if record.level is None else f" that can be promised with probability {record.level:g}"
        raise SwagError(
            f"No threshold has a risk of at most {target:g}{promise}: {_examples(tuning)} were too few or too often predicted wrongly. "
            "Ask for a higher risk, or tune with more examples"
            + (", or with confidence=None for no promise." if promise else ".")
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
        return f"the score from which on at least {record.target:g} of {_examples(tuning)} were predicted"
    if record.level is None:
        return f"the score from which on at most {record.target:g} of the predictions for {_examples(tuning)} were wrong"
    about = "about " if tuning.num_folds else ""  # a cross-fitted guarantee is approximate
    return (
        f"from which on at most {record.target:g} of the predictions are wrong, with probability {about}{record.level:g} "
        f"(calibrated on {_examples(tuning)})"
    )


def _examples(tuning: Tuning) -> str:
    return f"{tuning.num_calibration} examples of {tuning.dataset!r}"
