"""Predictions of a posterior and of its baselines (MAP, SWA, MC dropout, temperature scaling) for the same examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from torch import nn
from transformers import default_data_collator

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import AdapterMismatchError, DropoutError, NoDropoutError, SwagError
from swag_trainer.evaluation.plain_models import point_estimate
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics.scores import log_probabilities
from swag_trainer.metrics.temperature import fit_temperature
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.tasks import task_for
from swag_trainer.tasks.base import Task

METHODS = ("MAP", "MAP, temperature", "SWA", "SWAG", "MC dropout", "MC dropout, temperature")
_SCALED = {"MAP, temperature", "MC dropout, temperature"}


def methods_of(posterior: WeightPosterior | None) -> tuple[str, ...]:
    """Return the names of the methods that a posterior can be compared with, its own among them; `METHODS` for one of SWAG.

    Without a posterior they are those of a plain model.
    """
    own: tuple[str, ...] = ()
    if posterior is not None:
        own = (posterior.title,) if posterior.is_point else ("SWA", posterior.title)
    return ("MAP", "MAP, temperature", *own, "MC dropout", "MC dropout, temperature")


def predict_methods(
    model: nn.Module,
    posterior: WeightPosterior | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    ood: Sequence[Mapping[str, Any]] | None = None,
    validation: Sequence[Mapping[str, Any]] | None = None,
    sampling: Sampling | None = None,
    methods: Sequence[str] | None = None,
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> dict[str, MethodPredictions]:
    """Predict examples with each method, on a private copy of the model.

    "MAP"                      the adapter's weights as they stand in ``model``: the last iterate, or the mean if that is in its file
    "MAP, temperature"         the same with its logits divided by one temperature
    "SWA"                      the posterior's mean, one pass
    "SWAG"                     draws of the posterior, with its own scale and temperature; of another family, its ``title``
    "MC dropout"               MAP's weights, several passes with dropout as in training (Gal and Ghahramani 2016, arXiv:1506.02142)
    "MC dropout, temperature"  the same with the logits of every pass divided by one temperature

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
        validation: Examples with labels, for the temperatures: those that the posterior was tuned on, never those of ``rows``.
        sampling: How the posterior is drawn from, and how many passes of MC dropout there are; default: ``Sampling()``.
        methods: Some of `methods_of`. Default: all of them, but those with a temperature only if there are validation examples, and those
            with dropout only if the model drops out.
        batch_size: Examples per forward.
        data_collator: Makes a batch of examples.
        progress: Show a bar when a data set takes more than two seconds.

    Returns:
        Predictions by name, in the order of ``methods``.

    Raises:
        SwagError: An unknown method, no examples, a model that is not a classifier of exclusive classes, a temperature without labels to
            fit it on, or a method with dropout that was asked for of a model without.
        AdapterMismatchError: The posterior has other weights than the adapter.
    """
    sampling = sampling or Sampling()
    if methods is None:
        chosen = [name for name in methods_of(posterior) if name not in _SCALED or validation is not None]
    else:
        chosen = list(methods)
    # The mean of a point estimate is the point itself, without its temperature: measured where it is asked for.
    known = methods_of(posterior) if posterior is None else tuple(dict.fromkeys([*methods_of(posterior), "SWA"]))
    _check(known, chosen, {"rows": rows, "ood": ood, "validation": validation})
    if posterior is None:
        model, posterior = point_estimate(model)
    task = task_for(posterior.record)
    num_labels = _check_model(model, posterior, task)
    point = PointPosterior.at(posterior.layout.flatten(AdapterWeights(model, keys=posterior.layout.keys).read()), posterior)
    single = replace(sampling, scale=0.0, temperature=1.0, dropout=False, center="mean")
    plans: dict[str, tuple[WeightPosterior, Sampling]] = {
        "MAP": (point, single),
        "MAP, temperature": (point, single),
        "SWA": (posterior, single),
        "MC dropout": (point, replace(single, dropout=True)),
        "MC dropout, temperature": (point, replace(single, dropout=True)),
        posterior.title: (posterior, sampling),
    }
    predictions: dict[str, MethodPredictions] = {}
    for method in chosen:
        drawn, settings = plans[method]
        try:
            predictor = MonteCarloPredictor(
                model, drawn, settings, task=task, batch_size=batch_size, data_collator=data_collator, progress=progress
            )
            if method in _SCALED:
                assert validation is not None
                predictor = predictor.with_output(temperature=_temperature(predictor, validation, task, num_labels))
            began = perf_counter()
            predictive = predictor.predict(rows)
        except DropoutError as problem:
            if methods is not None:
                raise
            if not isinstance(problem, NoDropoutError) and method == "MC dropout":
                warnings.warn(f"Without MC dropout. {problem}", UserWarning, stacklevel=2)
            continue
        seconds = (perf_counter() - began) / len(rows)
        predictions[method] = MethodPredictions.from_predictive(
            predictive, None if ood is None else predictor.predict(ood), seconds_per_example=seconds
        )
    return predictions


def _temperature(predictor: MonteCarloPredictor, validation: Sequence[Mapping[str, Any]], task: Task, num_labels: int) -> float:
    """Return the best temperature for the validation examples."""
    draws = predictor.predict(validation, return_draws=True).draw_probabilities
    return fit_temperature(log_probabilities(draws), task.labels(validation, num_labels))


def _check(known: Sequence[str], methods: Sequence[str], data: Mapping[str, Sequence[Any] | None]) -> None:
    unknown = [method for method in methods if method not in known]
    if unknown or not methods:
        raise SwagError(f"The methods are {list(known)}, got {list(methods)}.")
    scaled = [method for method in methods if method in _SCALED]
    if scaled and data["validation"] is None:
        raise SwagError(
            f"{scaled[0]!r} needs validation examples with labels for its temperature: pass validation=..., or leave the method out."
        )
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
