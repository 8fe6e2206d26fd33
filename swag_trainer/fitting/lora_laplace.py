"""Laplace's approximation over all LoRA matrices and the head of a trained adapter, with a prior chosen on held-out examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import default_data_collator

from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.weights import AdapterWeights, private_copy
from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.errors import SwagError
from swag_trainer.fitting.adapter import TrainedAdapter
from swag_trainer.fitting.gauss_newton import kronecker_factors
from swag_trainer.fitting.loss import averaged_nll
from swag_trainer.fitting.prior_precision import check_precision, with_best_prior
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.kronecker import KroneckerPosterior
from swag_trainer.posterior.kronecker_block import KroneckerBlock
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.prediction.lengths import batches_of_one_length
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.prediction.sequential import event_logits
from swag_trainer.tasks.base import LABEL_COLUMNS, Task


def fit_laplace(
    adapter: TrainedAdapter,
    data: HeldOut,
    *,
    held_out: HeldOut | None = None,
    prior_precision: float | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> KroneckerPosterior:
    """Fit a Gaussian to all weights of a LoRA adapter: A and B of every adapted linear layer, and the linear layers of a trained head.

    Laplace-LoRA (Yang et al. 2024, arXiv:2308.13111) with other factors, see `kronecker_factors`. The precision of each matrix is its
    Gauss-Newton matrix over the training examples plus tau I. tau is that of the lowest NLL of the averaged probabilities on held-out
    examples, to half a power of 10. The marginal likelihood, which serves the head alone, holds for a model that is linear in the
    weights, and draws of A and B go through the model itself: on the demo's text (a seed of the study) its tau was 1.7, at which the accuracy
    fell from 74 to 9 %; the lowest NLL was at 562.

    Args:
        adapter: A LoRA adapter of linear layers.
        data: The training examples.
        held_out: Examples that nothing was trained on, to choose tau by; not with ``prior_precision``.
        prior_precision: tau.
        sampling: How many draws, and with which seed, the NLL is estimated; the seed is also that of the curvature's directions.
        batch_size, data_collator, progress: As for `MonteCarloPredictor`.

    Raises:
        SwagError: A trained weight is no matrix or bias of a linear layer, neither or both of ``held_out`` and ``prior_precision`` are given,
            or a prior precision that is not positive.
    """
    if (held_out is None) == (prior_precision is None):
        raise SwagError(
            'method="laplace" needs held_out=..., examples that the adapter was not trained on, by which the width of its prior is chosen; '
            "or else prior_precision=..., not both."
        )
    if prior_precision is not None:
        check_precision(prior_precision)
    with torch.inference_mode(False):
        weights = private_copy(adapter.model, adapter.weights.adapter_name, adapter.weights.layout.keys)
    layers = linear_layers(weights)
    batches = _batches(weights.model, adapter, data.rows, batch_size=batch_size, data_collator=data_collator)
    task = adapter.task.for_model(weights.model)
    blocks = curvature(layers, batches, lambda batch: _logits(task, weights.model, batch), seed=sampling.seed)
    means = adapter.values()
    layout = WeightLayout.of(means)
    record = FitRecord("laplace", data.name, data.split, data.revision, len(data.labels))

    def at(precision: float, **settings: float) -> KroneckerPosterior:
        kept = tuple(block.without_negligible(precision) for block in blocks)
        fit = replace(record, settings={"prior_precision": float(precision), **settings})
        return KroneckerPosterior(layout, layout.flatten(means), kept, adapter.record, fit, adapter.saved)

    if held_out is None:
        return at(prior_precision)

    reading: dict[str, Any] = {"batch_size": batch_size, "data_collator": data_collator, "progress": progress}

    def nll(posterior: KroneckerPosterior, *, at_mean: bool = False) -> float:
        return averaged_nll(adapter, posterior, held_out, sampling, scale=0.0 if at_mean else 1.0, **reading)

    return with_best_prior(at, nll, num_held_out=len(held_out.labels), num_samples=sampling.num_samples)


def linear_layers(weights: AdapterWeights) -> dict[str, nn.Linear]:
    """Return the linear layer of each weight matrix, by its key.

    Raises:
        SwagError: A weight is none of a linear layer, or a layer's weight and bias are not both trained.
    """
    name_of = {id(parameter): name for name, parameter in weights.model.named_parameters()}
    parameters = weights.named_parameters()
    layers: dict[str, nn.Linear] = {}
    for key, parameter in parameters.items():
        layer = weights.model.get_submodule(name_of[id(parameter)].rpartition(".")[0])
        matrix = key if parameter.dim() == 2 else key.removesuffix("bias") + "weight"
        bias = matrix.removesuffix("weight") + "bias"
        if not isinstance(layer, nn.Linear) or matrix not in parameters or (layer.bias is not None) != (bias in parameters):
            raise SwagError(
                f'method="laplace" is for the matrices of LoRA on linear layers and for heads of linear layers, and the adapter has {key!r} of '
                f'shape {list(parameter.shape)} in a {type(layer).__name__}. Use method="tfb", or method="laplace-head" for the head alone.'
            )
        layers[matrix] = layer
    return {key: layers[key] for key in sorted(layers)}


def curvature(
    layers: Mapping[str, nn.Linear], batches: Any, logits_of: Callable[[Any], Tensor], *, seed: int
) -> tuple[KroneckerBlock, ...]:
    """Return the block of each layer's Gauss-Newton matrix, in the order of the layers; see `kronecker_factors` for the arguments."""
    factors = kronecker_factors(layers, batches, logits_of, seed=seed)
    return tuple(KroneckerBlock.of(*factors[key]) for key in layers)


def _logits(task: Task, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a batch of examples with one event each. Shape (B, C)."""
    events, rows = len(task.events(batch)), len(next(iter(batch.values())))
    if events != rows:
        raise SwagError(
            f'method="laplace" is for tasks with one prediction for each example; {task.name!r} has {events} for {rows} examples. '
            'Use method="tfb".'
        )
    logits, missing = event_logits(task, model, batch), task.missing(batch)
    return logits if missing is None else logits.masked_fill(missing.to(logits.device), -torch.inf)


def _batches(
    model: nn.Module,
    adapter: TrainedAdapter,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int,
    data_collator: Callable[[list[Any]], Mapping[str, Any]],
) -> Iterator[dict[str, Tensor]]:
    """Yield the inputs of rows of one length, on the model's device."""
    known = set(inspect.signature(base_model(model).forward).parameters) - set(LABEL_COLUMNS) | adapter.task.columns
    device = adapter.weights.parameters()[0].device
    for places in batches_of_one_length(rows, batch_size)[0]:
        batch = data_collator([{name: value for name, value in rows[place].items() if name in known} for place in places])
        yield {name: value.to(device) for name, value in batch.items() if name in known and isinstance(value, Tensor)}
