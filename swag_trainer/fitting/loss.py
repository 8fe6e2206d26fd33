"""NLL of the averaged probabilities of a posterior's draws, by which the width of its noise is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.fitting.adapter import TrainedAdapter
from swag_trainer.metrics.scores import negative_log_likelihood
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.sampler import Sampling


def averaged_nll(
    adapter: TrainedAdapter,
    posterior: WeightPosterior,
    data: HeldOut,
    sampling: Sampling,
    *,
    scale: float,
    batch_size: int,
    data_collator: Callable[[list[Any]], Mapping[str, Any]],
    progress: bool,
) -> float:
    """Return the NLL of labelled examples, in nats for each, under draws around the mean at temperature 1 and without dropout.

    Args:
        adapter: In its model.
        posterior: Of this adapter.
        data: Labelled examples.
        sampling: How many draws, with which seed and design.
        scale: Factor of the covariance.
        batch_size, data_collator, progress: As for `MonteCarloPredictor`.
    """
    predictor = MonteCarloPredictor(
        adapter.model,
        posterior,
        replace(sampling, scale=scale, temperature=1.0, dropout=False, center="mean"),
        task=adapter.task,
        adapter_name=adapter.weights.adapter_name,
        batch_size=batch_size,
        data_collator=data_collator,
        progress=progress,
    )
    return negative_log_likelihood(predictor.predict(data.rows).probabilities, data.labels)
