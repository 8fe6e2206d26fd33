"""OOD score of a posterior: class means from training examples, and the distances of held-out examples that it is a fraction of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.features import MeanFeatures, fit_features

Posterior = TypeVar("Posterior", bound=WeightPosterior)


def with_ood_score(
    posterior: Posterior,
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    *,
    task: Task,
    train_data: Any = None,
    data_collator: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int = 32,
) -> Posterior:
    """Return the posterior with the features that its OOD score needs; as it is where there is nothing to fit class means to.

    Class means and covariance are fitted to the training examples, or taken from the posterior. One forward for each example.

    Args:
        posterior: The posterior of the model's adapter, with its features where the callback fitted them.
        model: The PEFT model.
        rows: Held-out examples, as the Trainer takes them. Labels are not used.
        task: Which features, and whose labels.
        train_data: Examples that the model was trained on, with labels.
        data_collator, batch_size: As for `swag_trainer.MonteCarloPredictor`.

    Raises:
        SwagError: The model has no features, or a training example has no class number.
    """
    fitted = posterior.features
    if train_data is None and fitted is None:
        return posterior
    features = MeanFeatures(model, posterior, task=task)
    reading: dict[str, Any] = {"data_collator": data_collator, "batch_size": batch_size}
    if train_data is not None:
        rows_of_training = train_data if hasattr(train_data, "__len__") else list(train_data)
        num_labels = base_model(adapted_model(model)).config.num_labels
        fitted = fit_features(features, rows_of_training, task=task, num_labels=num_labels, **reading)
    assert fitted is not None
    return posterior.with_features(fitted.with_held_out(fitted.distance(features.of_rows(rows, **reading))))
