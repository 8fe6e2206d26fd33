"""Class means and covariance of the training examples' features at the end of a training run, for the OOD score."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.distributed import is_first
from swag_trainer.errors import SwagError
from swag_trainer.posterior.features import FeatureDistribution
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.tasks import task_for, task_named, task_of
from swag_trainer.tasks.features import MeanFeatures, check_link, fit_features

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)


def check_ood_features(weights: AdapterWeights, trainer: Trainer | None) -> None:
    """Refuse, before a run begins, what no features can be fitted to at its end.

    Raises:
        SwagError: The model is not for classes that exclude each other, the Trainer was not found, or its training examples have no length.
    """
    check_link(weights.model, task_named(task_of(base_model(weights.model))))
    if trainer is None or not hasattr(trainer.train_dataset, "__len__"):
        kind = "a Trainer that was found" if trainer is None else "training examples with a length"
        raise SwagError(
            f"SwagCallback(ood_features=True) needs {kind}: it reads them once more when training is over. Leave it out, and pass training "
            "examples to swag_trainer.tune(..., train_data=...) afterwards."
        )


def with_ood_features(posterior: SwagPosterior, weights: AdapterWeights, trainer: Trainer) -> SwagPosterior:
    """Return the posterior with features of the Trainer's training examples, and distances of its evaluation examples if it has one set.

    One forward for each example, at the posterior's mean. In a distributed run every process does all of it. Where nothing can
    be fitted, or the weights are cut up over processes, this is logged and the posterior comes back as it is: the trained model must reach the lines after ``trainer.train()``.
    """
    try:
        return posterior.with_features(_fitted(posterior, weights, trainer))
    except SwagError as error:
        if is_first():
            logger.warning("The posterior has no OOD score. %s", error)
        return posterior


def _fitted(posterior: SwagPosterior, weights: AdapterWeights, trainer: Trainer) -> FeatureDistribution:
    task = task_for(posterior.record)
    features = MeanFeatures(weights.model, posterior, task=task, adapter_name=weights.adapter_name)
    reading = {"data_collator": trainer.data_collator, "batch_size": trainer.args.per_device_eval_batch_size}
    num_labels = base_model(weights.model).config.num_labels
    fitted = fit_features(features, trainer.train_dataset, task=task, num_labels=num_labels, **reading)
    held_out: Any = trainer.eval_dataset
    if held_out is None or isinstance(held_out, dict) or not hasattr(held_out, "__len__") or not len(held_out):
        return fitted
    rows = [held_out[index] for index in range(len(held_out))]
    return fitted.with_held_out(fitted.distance(features.of_rows(rows, **reading)))
