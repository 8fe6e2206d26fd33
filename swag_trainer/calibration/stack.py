"""Stacking: the weights of a mixture's members that fit held-out data best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn
from transformers import default_data_collator

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.errors import SwagError
from swag_trainer.posterior.mixture import PosteriorMixture
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.tasks import task_for

_MOST_ITERATIONS = 20_000
_CONVERGED = 1e-9


def stack(
    mixture: PosteriorMixture,
    model: nn.Module,
    data: Iterable[Any],
    *,
    sampling: Sampling | None = None,
    penalty: float = 1.0,
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> PosteriorMixture:
    """Return the mixture with the weights of lowest NLL on held-out data (stacking, Yao et al. 2018, arXiv:1704.02030).

    The weights are the maximum of sum_i log sum_m w_m p_m(y_i) + penalty * sum_m log w_m, where p_m(y_i) is what member m's draws give
    the label of example i on average. The problem is convex; it is solved by expectation maximisation.

    Args:
        mixture: The mixture; it stays as it is. Temperature and dropout that `swag_trainer.tune` found are not used, and dropped: tune the result.
        model, data, batch_size, data_collator, progress: As for `swag_trainer.tune`.
        sampling: How to draw; default: ``Sampling()`` at temperature 1.
        penalty: How many examples the prior towards uniform weights counts like, for each member; > 0.

    Raises:
        SwagError: Labels that are not class numbers, classes that do not exclude each other, or a penalty that is not positive.
    """
    if not isinstance(mixture, PosteriorMixture):
        raise SwagError(f"stack() weighs the members of a PosteriorMixture, got a {type(mixture).__name__}.")
    if not 0 < penalty < float("inf"):
        raise SwagError(f"penalty must be finite and > 0, got {penalty}.")
    config, task = base_model(adapted_model(model)).config, task_for(mixture.record)
    if task.link(config) != "softmax":
        raise SwagError(
            "Stacking is for classes that exclude each other, and this model is for a regression or several labels."
        )
    held_out = HeldOut.of(data, task=task, num_labels=task.num_classes(config), name=None, split=None, revision=None)
    plain = mixture.with_member_weights("uniform")
    predictor = MonteCarloPredictor(
        model, plain, sampling, batch_size=batch_size, data_collator=data_collator, progress=progress
    )
    draws = predictor.predict(held_out.rows, return_draws=True).draw_probabilities
    members = predictor.draw_members(len(draws)).numpy()
    of_labels = draws[:, np.arange(len(held_out.labels)), held_out.labels]
    likelihoods = np.stack([of_labels[members == member].mean(0) for member in range(len(mixture.members))])
    return mixture.with_member_weights(stacking_weights(likelihoods, penalty).tolist())


def stacking_weights(likelihoods: np.ndarray, penalty: float) -> np.ndarray:
    """Return the weights w that maximise sum_i log sum_m w_m p_mi + penalty * sum_m log w_m, by expectation maximisation.

    Args:
        likelihoods: p, what each of M models gives the label of each of N examples. Shape (M, N).
        penalty: > 0; the larger, the closer to uniform weights.

    Returns:
        Shape (M,), sums to 1.
    """
    weights = np.full(len(likelihoods), 1 / len(likelihoods))
    floored = np.maximum(likelihoods, np.finfo(np.float64).tiny)
    for _ in range(_MOST_ITERATIONS):
        joint = weights[:, None] * floored
        before, weights = weights, (joint / joint.sum(0)).sum(1) + penalty
        weights /= weights.sum()
        if np.abs(weights - before).max() < _CONVERGED:
            break
    return weights
