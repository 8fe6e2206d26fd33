"""The answers of SWAG and of the methods it has to beat, on the same rows from the same model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import default_data_collator

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics.temperature import fit_temperature
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.prediction.predictive import Predictive
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.tasks import task_named

Method = Literal["MAP", "MAP, temperature", "SWA", "SWAG", "MC dropout"]
METHODS: tuple[Method, ...] = ("MAP", "MAP, temperature", "SWA", "SWAG", "MC dropout")

_LABELS = ("labels", "label", "label_ids")
_Answer = Callable[[Sequence[Mapping[str, Any]]], Predictive]


def predict_methods(
    model: nn.Module,
    posterior: SwagPosterior,
    rows: Sequence[Mapping[str, Any]],
    *,
    foreign: Sequence[Mapping[str, Any]] | None = None,
    validation: Sequence[Mapping[str, Any]] | None = None,
    num_samples: int = 10,
    seed: int = 0,
    methods: Sequence[Method] | None = None,
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> dict[str, MethodPredictions]:
    """Answer rows with each method, on a private copy of the model.

    "MAP"               the adapter's weights as they stand in ``model``: the last iterate, or the mean if that is what its file held
    "MAP, temperature"  the same with its logits divided by one temperature, fitted on the validation rows
    "SWA"               the posterior's mean, one pass
    "SWAG"              ``num_samples`` draws of the posterior at its own scale
    "MC dropout"        MAP's weights, ``num_samples`` passes with dropout as in training (Gal and Ghahramani 2016, arXiv:1506.02142)

    Dropout's masks depend on the seed and on which rows share a batch; the random state of the process is as before afterwards.
    Times are those of the known rows, first batches included, without the making of copies and draws.

    Args:
        model: The PEFT model, on the device to predict on. It is left as it is, mode and weights.
        posterior: The posterior of its active adapter.
        rows: As the Trainer takes them; labels are not looked at.
        foreign: Rows of another kind.
        validation: Rows with labels, for the temperature. Never those of ``rows``.
        num_samples: Draws of SWAG and passes of MC dropout, >= 1.
        seed: Of the draws and of the masks.
        methods: Which methods. None for all of them, without "MAP, temperature" if there are no validation rows.
        batch_size: Rows per forward.
        data_collator: Makes a batch of rows.
        progress: Show a bar when a data set takes more than two seconds.

    Returns:
        Answers by name, in the order of ``methods``.

    Raises:
        SwagError: An unknown method, no rows, a model that is not a classifier of exclusive classes, a temperature without labels to fit
            it on, or dropout that is nowhere active.
        AdapterMismatchError: The posterior has other weights than the adapter.
    """
    if methods is None:
        methods = [method for method in METHODS if method != "MAP, temperature" or validation is not None]
    _check(model, posterior, rows, foreign, validation, methods, num_samples)
    _check_weights(model, posterior)
    settings: dict[str, Any] = {"batch_size": batch_size, "data_collator": data_collator, "seed": seed, "progress": progress}
    answers: dict[str, MethodPredictions] = {}
    for method in methods:
        if method == "MC dropout":
            point = _point_of(model, posterior)
            answer: _Answer = MonteCarloPredictor(model, point, num_samples=num_samples, dropout=True, **settings).predict
        else:
            gaussian = _point_of(model, posterior) if method.startswith("MAP") else posterior
            scale = posterior.scale if method == "SWAG" else 0.0
            predictor = MonteCarloPredictor(model, gaussian, num_samples=num_samples, scale=scale, **settings)
            answer = predictor.predict  # type: ignore[assignment]
        if method == "MAP, temperature":
            assert validation is not None
            answer = _tempered(answer, _fitted_temperature(answer(validation).probabilities, labels_of(validation)))
        began = perf_counter()
        known = answer(rows)
        seconds = (perf_counter() - began) / len(rows)
        answers[method] = MethodPredictions.from_predictive(
            known, None if foreign is None else answer(foreign), seconds_per_row=seconds
        )
    return answers


def labels_of(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the labels of rows as the Trainer takes them. Shape (N,).

    Raises:
        SwagError: A row has none.
    """
    labels = []
    for index in range(len(rows)):
        row = rows[index]
        name = next((name for name in _LABELS if name in row), None)
        if name is None:
            raise SwagError(f"Row {index} has no label; its columns are {sorted(row)}, one of {list(_LABELS)} is needed.")
        labels.append(int(row[name]))
    return np.array(labels)


def _check(
    model: nn.Module,
    posterior: SwagPosterior,
    rows: Sequence[Any],
    foreign: Sequence[Any] | None,
    validation: Sequence[Any] | None,
    methods: Sequence[str],
    num_samples: int,
) -> None:
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise SwagError(f"The methods are {list(METHODS)}, got {list(methods)}.")
    if "MAP, temperature" in methods and validation is None:
        raise SwagError('"MAP, temperature" needs validation rows with labels: pass validation=..., or leave the method out.')
    if num_samples < 1:
        raise SwagError(f"num_samples must be at least 1, got {num_samples}.")
    for name, given in {"rows": rows, "foreign": foreign, "validation": validation}.items():
        if given is not None and len(given) == 0:
            raise SwagError(f"There is nothing to answer: {name} has no rows.")
    if _link(model, posterior) != "softmax":
        raise SwagError(
            "Methods are measured on classes that exclude each other; this model is for several labels or a regression."
        )


def _link(model: nn.Module, posterior: SwagPosterior) -> str:
    return task_named(posterior.record.task).link(getattr(base_model(adapted_model(model)), "config", None))


def _check_weights(model: nn.Module, posterior: SwagPosterior) -> None:
    adapter = AdapterWeights(model, keys=posterior.layout.keys).layout
    difference = posterior.layout.difference(adapter, ours="The posterior", theirs="The adapter")
    if difference:
        raise AdapterMismatchError(f"The posterior is of another adapter than the model's. {difference}")


def _point_of(model: nn.Module, posterior: SwagPosterior) -> PointPosterior:
    """The model's own weights as a posterior: the predictor then answers with those."""
    return PointPosterior.at(posterior.layout.flatten(AdapterWeights(model, keys=posterior.layout.keys).read()), posterior)


def _logs(probabilities: np.ndarray) -> np.ndarray:
    """Logits, up to a constant of each row, which a softmax does not see."""
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))


def _fitted_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return fit_temperature(_logs(probabilities), labels)


def _tempered(answer: _Answer, temperature: float) -> _Answer:
    def tempered(rows: Sequence[Mapping[str, Any]]) -> Predictive:
        logits = _logs(answer(rows).probabilities) / temperature
        return Predictive.from_logits(torch.from_numpy(logits)[None], "softmax")

    return tempered
