"""Evaluation of methods on the same examples: every metric with its bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from swag_trainer.errors import SwagError
from swag_trainer.evaluation.comparison import compare, compare_ood_detection
from swag_trainer.evaluation.identity import identity
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.evaluation.record import Measurement, MethodMetrics
from swag_trainer.evaluation.reliability import diagram_bins
from swag_trainer.metrics.bootstrap import Interval, bootstrap_interval
from swag_trainer.metrics.calibration import expected_calibration_error
from swag_trainer.metrics.checks import checked
from swag_trainer.metrics.ood import aupr, auroc, fpr_at_tpr, uncertainty_scores
from swag_trainer.metrics.scores import accuracy, brier_score, macro_f1, negative_log_likelihood
from swag_trainer.metrics.selective import (
    area_under_generalised_risk_coverage,
    area_under_risk_coverage,
    risk_coverage_curve,
)
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.version import __version__

__all__ = ["Measurement", "MethodMetrics", "measure"]

_OOD_METRICS: dict[str, Callable[..., float]] = {"auroc": auroc, "aupr": aupr, "fpr95": fpr_at_tpr}
_BOUNDS = {"nll": (0, math.inf), "brier": (0, 2)}  # of other metrics (0, 1)
_SHOWN_UNCERTAINTIES = ("entropy", "mutual_information")


def measure(
    methods: Mapping[str, MethodPredictions],
    labels: ArrayLike,
    *,
    dataset: str = "unnamed",
    split: str | None = None,
    revision: str | None = None,
    ood: str | None = None,
    posterior: WeightPosterior | None = None,
    sampling: Sampling | None = None,
    map_weights: str | None = None,
    compared: str | None = None,
    num_bins: int = 15,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> Measurement:
    """Measure methods on the same examples.

    Every method and metric sees the same resamples; in-distribution and out-of-distribution (OOD) examples are resampled each among
    themselves.

    Args:
        methods: Predictions of each method, by its name.
        labels: True classes of the in-distribution examples. Shape (N,).
        dataset, split, revision: Of the in-distribution examples, for the record.
        ood: Name of the OOD examples, for the record.
        posterior: Whose draws were averaged. Its identity goes into the record.
        sampling: How it was drawn from, with the scale and temperature of the posterior where they are None.
        map_weights: Whose weights "MAP" has, for the record: "last" (snapshot) or "adapter" (file).
        compared: The method to compare with the others; default: the posterior's, if it is among ``methods``.
        num_bins: Bins of the calibration errors, and at most of the reliability diagram.
        num_resamples: Resamples for each interval.
        level: Of the intervals, in (0, 1).
        seed: Of the resamples.
        clusters: Number of the example that each label belongs to, where examples have several, as the texts of token classification do:
            ``np.repeat(np.arange(len(rows)), task.num_events(rows))``. Whole examples are then resampled and counted; not with OOD examples.
            Shape (N,).

    Raises:
        SwagError: No method, methods with predictions for other numbers of examples or classes, or clusters with OOD examples.
        ValueError: Impossible labels, or a number out of range.
    """
    if not methods:
        raise SwagError("measure() needs the predictions of at least one method.")
    num_ood = _check_same_examples(methods)
    if num_ood and clusters is not None:
        raise SwagError(
            "Detection of OOD examples is measured on examples with one label each: leave clusters out, or the OOD examples."
        )
    options: dict[str, Any] = {"level": level, "num_resamples": num_resamples, "seed": seed}
    found = {}
    for name, predictions in methods.items():
        probabilities, checked_labels = checked(predictions.probabilities, labels)
        metrics = {
            metric: bootstrap_interval(
                function, probabilities, checked_labels, bounds=_BOUNDS.get(metric, (0, 1)), clusters=clusters, **options
            )
            for metric, function in _metrics(num_bins).items()
        }
        found[name] = MethodMetrics(
            metrics=metrics | _ood_metrics(predictions, options),
            num_draws=predictions.num_draws,
            seconds_per_example=predictions.seconds_per_example,
            num_trainings=predictions.num_trainings,
            fit_seconds=predictions.fit_seconds,
            bins=diagram_bins(probabilities, checked_labels, most=num_bins),
            curve=risk_coverage_curve(probabilities.max(axis=1), probabilities.argmax(axis=1) == checked_labels),
        )
    own = "SWAG" if posterior is None else posterior.title
    if compared is None and own in methods:
        compared = own
    if posterior is not None:
        sampling = (sampling or Sampling()).resolved(posterior)
    comparisons = []
    if compared is not None:
        comparisons = compare(methods, labels, method=compared, clusters=clusters, **options)
        comparisons += compare_ood_detection(methods, method=compared, **options)
    return Measurement(
        dataset=dataset,
        split=split,
        revision=revision,
        num_examples=len(checked_labels) if clusters is None else len(np.unique(clusters)),
        ood=(ood or "unnamed") if num_ood else None,
        num_ood=num_ood,
        posterior=None if posterior is None else identity(posterior),
        sampling=sampling,
        map_weights=map_weights,
        num_bins=num_bins,
        num_resamples=num_resamples,
        level=level,
        seed=seed,
        methods=found,
        uncertainties=_uncertainties(methods.get(own)),
        comparisons=comparisons,
        versions={"swag_trainer": __version__} | {name: version(name) for name in ("torch", "transformers", "peft")},
    )


def _metrics(num_bins: int) -> dict[str, Callable[..., float]]:
    def ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
        return expected_calibration_error(probabilities, labels, num_bins=num_bins)

    def ece_quantile(probabilities: np.ndarray, labels: np.ndarray) -> float:
        return expected_calibration_error(probabilities, labels, num_bins=num_bins, scheme="quantile")

    def aurc(probabilities: np.ndarray, labels: np.ndarray) -> float:
        return area_under_risk_coverage(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)

    def augrc(probabilities: np.ndarray, labels: np.ndarray) -> float:
        return area_under_generalised_risk_coverage(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)

    return {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "nll": negative_log_likelihood,
        "ece": ece,
        "ece_quantile": ece_quantile,
        "brier": brier_score,
        "aurc": aurc,
        "augrc": augrc,
    }


def _ood_metrics(predictions: MethodPredictions, options: Mapping[str, Any]) -> dict[str, Interval]:
    if predictions.ood_probabilities is None:
        return {}
    in_distribution = uncertainty_scores(predictions.probabilities, predictions.mutual_information)
    ood = uncertainty_scores(predictions.ood_probabilities, predictions.ood_mutual_information)
    in_distribution |= {name: scores[0] for name, scores in predictions.ood_scores.items()}
    ood |= {name: scores[1] for name, scores in predictions.ood_scores.items()}
    is_ood = np.repeat([False, True], [len(predictions.probabilities), len(predictions.ood_probabilities)])
    metrics = {}
    for score, values in in_distribution.items():
        scores = np.concatenate([values, ood[score]])
        for metric, function in _OOD_METRICS.items():

            def measured(drawn: np.ndarray, flags: np.ndarray, function: Callable[..., float] = function) -> float:
                return function(drawn[~flags], drawn[flags])

            metrics[f"{metric}_{score}"] = bootstrap_interval(measured, scores, is_ood, strata=is_ood, bounds=(0, 1), **options)
    return metrics


def _uncertainties(predictions: MethodPredictions | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if predictions is None or predictions.ood_probabilities is None:
        return {}
    in_distribution = uncertainty_scores(predictions.probabilities, predictions.mutual_information)
    ood = uncertainty_scores(predictions.ood_probabilities, predictions.ood_mutual_information)
    return {name: (in_distribution[name], ood[name]) for name in _SHOWN_UNCERTAINTIES if name in in_distribution}


def _check_same_examples(methods: Mapping[str, MethodPredictions]) -> int:
    """Return M, how many OOD examples there are."""
    shapes = {
        name: (*each.probabilities.shape, 0 if each.ood_probabilities is None else len(each.ood_probabilities))
        for name, each in methods.items()
    }
    first, expected = next(iter(shapes.items()))
    for name, shape in shapes.items():
        if shape != expected:
            raise SwagError(
                f"Methods are measured on the same examples, but {first!r} has predictions for {_described(expected)} and {name!r} for "
                f"{_described(shape)}."
            )
    return expected[2]


def _described(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} examples of {shape[1]} classes and {shape[2] or 'no'} OOD examples"
