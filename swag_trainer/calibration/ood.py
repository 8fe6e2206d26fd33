"""OOD score of a posterior: class means from training examples, and the distances of held-out examples that it is a fraction of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from torch import nn

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.calibration.cross_fitting import NUM_FOLDS
from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.features import FeatureDistribution, fit
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.features import MeanFeatures, fit_features

Posterior = TypeVar("Posterior", bound=WeightPosterior)


def with_ood_score(
    posterior: Posterior,
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    labels: np.ndarray,
    *,
    task: Task,
    train_data: Any = None,
    data_collator: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int = 32,
) -> Posterior:
    """Return the posterior with the features that its OOD score needs. One forward for each example, at the mean weights.

    Class means and covariance are fitted to the training examples if they are given, else taken from the posterior, where the callback
    fitted them. A posterior without is fitted to the held-out examples themselves, and their distances come from cross-fitting: those
    of a fifth of the examples from a fit to the other four. As the final fit has seen more of each class, such a score is a little too
    low. It needs five examples per class on average. With fewer, or with a model that has no features, the posterior comes back as it is,
    without an OOD score.

    Args:
        posterior: The posterior of the model's adapter.
        model: The PEFT model.
        rows: Held-out examples, as the Trainer takes them.
        labels: Their classes. Shape (N,).
        task: Which features, and whose labels.
        train_data: Examples that the model was trained on, with labels.
        data_collator, batch_size: As for `swag_trainer.MonteCarloPredictor`.

    Raises:
        SwagError: A training example has no class number, or the training examples have no features.
    """
    num_labels = task.num_classes(base_model(adapted_model(model)).config)
    fitted = posterior.features
    reading: dict[str, Any] = {"data_collator": data_collator, "batch_size": batch_size}
    if train_data is None and (fitted is None or fitted.cross_fitted):
        if len(rows) < NUM_FOLDS * num_labels:
            return posterior
        try:
            features = MeanFeatures(model, posterior, task=task)
            return posterior.with_features(cross_fitted(features.of_rows(rows, **reading), labels))
        except SwagError:  # nothing was asked for; with train_data it is raised
            return posterior
    features = MeanFeatures(model, posterior, task=task)
    if train_data is not None:
        examples = train_data if hasattr(train_data, "__len__") else list(train_data)
        fitted = fit_features(features, examples, task=task, num_labels=num_labels, **reading)
    assert fitted is not None
    return posterior.with_features(fitted.with_held_out(fitted.distance(features.of_rows(rows, **reading))))


def cross_fitted(features: np.ndarray, labels: np.ndarray) -> FeatureDistribution:
    """Return the fit to all examples, with the distance of each from a fit to the other four fifths of them.

    Args:
        features: Shape (N, h).
        labels: Shape (N,), integers. Every class is spread over the fifths.
    """
    folds = np.empty(len(labels), dtype=np.int64)
    folds[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % NUM_FOLDS
    distances = np.empty(len(labels))
    for fold in range(NUM_FOLDS):
        inside = folds == fold
        distances[inside] = fit(features[~inside], labels[~inside]).distance(features[inside])
    return replace(fit(features, labels).with_held_out(distances), cross_fitted=True)
