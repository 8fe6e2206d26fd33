"""Predictions of a posterior and of its baselines (MAP, SWA, MC dropout, temperature scaling) for the same examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from torch import nn
from transformers import default_data_collator

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.adapters.peft_layers import is_adapted
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import AdapterMismatchError, DropoutError, NoDropoutError, SwagError
from swag_trainer.evaluation.names import has_temperature
from swag_trainer.evaluation.plain_models import point_estimate
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.evaluation.registry import (
    REGISTRY,
    FitFailedError,
    NotApplicableError,
    Prepare,
    Setting,
    default_names,
    entries_for,
)
from swag_trainer.metrics.scores import log_probabilities
from swag_trainer.metrics.temperature import fit_temperature
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.tasks import task_for
from swag_trainer.tasks.base import Task

METHODS = tuple(REGISTRY)


def predict_methods(
    model: nn.Module,
    posterior: WeightPosterior | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    ood: Sequence[Mapping[str, Any]] | None = None,
    validation: Sequence[Mapping[str, Any]] | None = None,
    train: Sequence[Mapping[str, Any]] | None = None,
    sampling: Sampling | None = None,
    methods: Sequence[str] | None = None,
    skipped: MutableMapping[str, str] | None = None,
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> dict[str, MethodPredictions]:
    """Predict examples with each method, on a private copy of the model.

    "MAP"                      the adapter's weights as they stand in ``model``: the last iterate, or the mean if that is in its file
    "MAP, temperature"         the same with its logits divided by one temperature
    "SWA"                      the posterior's mean, one pass; of a mixture "MultiSWA", one pass for each member
    "SWAG"                     draws of the posterior, with its own scale and temperature; of another family, its ``title``
    "MC dropout"               MAP's weights, several passes with dropout as in training (Gal and Ghahramani 2016, arXiv:1506.02142)
    "MC dropout, temperature"  the same with the logits of every pass divided by one temperature
    "Ensemble"                 one pass with the final weights of each member of a mixture (deep ensemble)
    "TFB", "Laplace (head)", "Laplace (LoRA)"  posteriors that `swag_trainer.fit_posterior` fits around MAP's weights to the training examples

    The temperatures are fitted on the validation examples, by the NLL of the averaged probabilities and with the prior of
    `swag_trainer.metrics.fit_temperature`, which is that of `swag_trainer.tune`.

    Dropout's masks depend on the seed alone, see `DropoutMasks`; the random state of the process is left as it was. Times
    are those of the in-distribution examples, first batches included, without the making of copies and draws.

    Args:
        model: The PEFT model, on the device to predict on. It is left as it is, mode and weights. Without a posterior, also a classifier
            without an adapter.
        posterior: The posterior of its active adapter, of any family; None for a model without, which has the methods of the adapter
            or of the model alone.
        rows: Examples as the Trainer takes them; their labels are not used.
        ood: Out-of-distribution examples.
        validation: Examples with labels, for the temperatures and the prior of Laplace: those that the posterior was tuned on, never those of ``rows``.
        train: The training examples with labels, for the methods that are fitted to them.
        sampling: How the posterior is drawn from, and how many passes of MC dropout there are; default: ``Sampling()``.
        methods: Names of methods; default: all that apply, see `swag_trainer.evaluation.registry.default_names`.
        skipped: Where ``methods`` is None: gets the reason for each method that does not apply, by its name.
        batch_size: Examples per forward.
        data_collator: Makes a batch of examples.
        progress: Show a bar when a data set takes more than two seconds.

    Returns:
        Predictions by name, in the order of ``methods``.

    Warns:
        UserWarning: A method that should apply failed, where ``methods`` and ``skipped`` are None.

    Raises:
        SwagError: An unknown method, no examples, a model that is not a classifier of exclusive classes, or a method in ``methods`` that does
            not apply.
        AdapterMismatchError: The posterior has other weights than the adapter.
    """
    sampling = sampling or Sampling()
    entries = entries_for(posterior)
    chosen = default_names(posterior) if methods is None else list(methods)
    _check(list(entries), chosen, {"rows": rows, "ood": ood, "validation": validation, "train": train})
    has_adapter, given = any(map(is_adapted, model.modules())), posterior
    if posterior is None:
        model, posterior = point_estimate(model)
    task = task_for(posterior.record)
    num_labels = _check_model(model, posterior, task)
    point = PointPosterior.at(posterior.layout.flatten(AdapterWeights(model, keys=posterior.layout.keys).read()), posterior)
    reading = {"batch_size": batch_size, "data_collator": data_collator, "progress": progress}
    setting = Setting(model, has_adapter, given, point, sampling, train, validation, reading)
    predictions: dict[str, MethodPredictions] = {}
    for name in chosen:
        try:
            predictions[name] = _predict(entries[name], setting, task, num_labels, rows, ood)
        except (NotApplicableError, FitFailedError, DropoutError) as problem:
            if methods is not None:
                raise
            if skipped is not None:
                skipped[name] = str(problem)
            elif not isinstance(problem, (NotApplicableError, NoDropoutError)) and not has_temperature(name):
                warnings.warn(f"Without {name}. {problem}", UserWarning, stacklevel=2)
    return predictions


def _predict(
    prepare: Prepare,
    setting: Setting,
    task: Task,
    num_labels: int,
    rows: Sequence[Mapping[str, Any]],
    ood: Sequence[Mapping[str, Any]] | None,
) -> MethodPredictions:
    """Prepare a method, and predict with it; both are timed.

    Raises:
        NotApplicableError, FitFailedError, DropoutError: There is no such method for this model and this data.
    """
    began = perf_counter()
    plan = prepare(setting)
    fit_seconds = perf_counter() - began
    predictor = MonteCarloPredictor(setting.model, plan.posterior, plan.sampling, task=task, **setting.reading)
    began = perf_counter()
    if plan.fits_temperature:
        predictor = predictor.with_output(temperature=_temperature(predictor, setting.validation or (), task, num_labels))
    fitted = perf_counter()
    predictive = predictor.predict(rows)
    seconds = perf_counter() - fitted
    return replace(
        MethodPredictions.from_predictive(
            predictive, None if ood is None else predictor.predict(ood), seconds_per_example=seconds / len(rows)
        ),
        num_trainings=plan.num_trainings,
        fit_seconds=fit_seconds + fitted - began if plan.is_fitted else None,
    )


def _temperature(predictor: MonteCarloPredictor, validation: Sequence[Mapping[str, Any]], task: Task, num_labels: int) -> float:
    """Return the best temperature for the validation examples."""
    draws = predictor.predict(validation, return_draws=True).draw_probabilities
    return fit_temperature(log_probabilities(draws), task.labels(validation, num_labels))


def _check(known: Sequence[str], methods: Sequence[str], data: Mapping[str, Sequence[Any] | None]) -> None:
    unknown = [method for method in methods if method not in known]
    if unknown or not methods:
        raise SwagError(f"The methods are {list(known)}, got {list(methods)}.")
    for name, examples in data.items():
        if examples is not None and len(examples) == 0:
            raise SwagError(f"There is nothing to predict: {name} has no examples.")


def _check_model(model: nn.Module, posterior: WeightPosterior, task: Task) -> int:
    """Return C, how many classes the model has."""
    config = base_model(adapted_model(model)).config
    if task.link(config) != "softmax":
        raise SwagError(
            "Methods are measured on classes that exclude each other; this model is for several labels or a regression."
        )
    adapter = AdapterWeights(model, keys=posterior.layout.keys).layout
    difference = posterior.layout.difference(adapter, ours="The posterior", theirs="The adapter")
    if difference:
        raise AdapterMismatchError(f"The posterior is of another adapter than the model's. {difference}")
    return task.num_classes(config)
