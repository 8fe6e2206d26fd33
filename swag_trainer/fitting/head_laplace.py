"""Laplace's approximation over the classification head of a trained adapter (Daxberger et al. 2021, arXiv:2106.14806)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from torch import Tensor
from transformers import default_data_collator

from swag_trainer.adapters.plain_lora import rank_axis
from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.errors import SwagError
from swag_trainer.fitting.adapter import TrainedAdapter
from swag_trainer.fitting.prior_precision import check_precision, with_best_prior
from swag_trainer.metrics.scores import log_probabilities, negative_log_likelihood
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.kronecker import KroneckerPosterior
from swag_trainer.posterior.kronecker_block import KroneckerBlock
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.tasks.features import MeanFeatures

_TOLERANCE = 1e-3  # of probabilities that are computed twice
_PRIOR_RANGE = (-4.0, 6.0)  # powers of 10
_MOST_RISE = 0.1  # of the training NLL, in nats, before a warning


def fit_head_laplace(
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
    """Fit a Gaussian to the head's weights: one forward of the data, and draws of the head alone afterwards.

    With the head's inputs f_n (a 1 appended for the bias) and probabilities p_n the Gauss-Newton matrix of the loss,
    sum_n (diag(p_n) - p_n p_n^T) (x) f_n f_n^T, is approximated by the Kronecker product of its factors' sums over N (KFAC, Ritter et al.
    2018), mean_n (diag(p_n) - p_n p_n^T) (x) sum_n f_n f_n^T. The prior is normal with mean 0 and precision tau: that of the lowest NLL of
    the averaged probabilities on held-out examples, or else of the highest marginal likelihood,
    log p(D | W) - tau |W|^2 / 2 + (P / 2) log tau - log det(H + tau I) / 2.

    Give held-out examples. A network that fits its training examples well has little curvature there, and the marginal likelihood then takes a
    prior that is far too wide: in the study (docs/benchmarks.md) the NLL rose on each of five tasks, on CLINC150 from .30 to 1.04.

    Args:
        adapter: An adapter that trained the head (``modules_to_save``).
        data: The training examples.
        held_out: Examples that nothing was trained on, to choose tau by; not with ``prior_precision``.
        prior_precision: tau; without it and without ``held_out``, that of the highest marginal likelihood, between 1e-4 and 1e6.
        sampling: How many draws, and with which seed, the NLL is estimated.
        batch_size, data_collator, progress: As for `MonteCarloPredictor`.

    Warns:
        UserWarning: The marginal likelihood chose a prior whose draws fit the training examples much worse than the mean.

    Raises:
        SwagError: The adapter did not train the head, a prior precision that is not positive, or one beside ``held_out``.
    """
    if held_out is not None and prior_precision is not None:
        raise SwagError("held_out examples choose the prior's precision: leave prior_precision out, or them.")
    if prior_precision is not None:
        check_precision(prior_precision)
    weights = adapter.values()
    layout = WeightLayout.of(weights)
    point = PointPosterior(layout, layout.flatten(weights), adapter.record, adapter.saved)
    reading: dict[str, Any] = {"data_collator": data_collator, "batch_size": batch_size}
    name = adapter.weights.adapter_name
    features_of = MeanFeatures(adapter.model, point, task=adapter.task, adapter_name=name)
    features = features_of.of_rows(data.rows, **reading)
    predictor = MonteCarloPredictor(adapter.model, point, task=adapter.task, adapter_name=name, progress=progress, **reading)
    probabilities = predictor.predict(data.rows).probabilities
    head = _head(weights, features, probabilities)
    own = WeightLayout.of(head)
    curvature = HeadCurvature.of(features, probabilities, has_bias=len(head) == 2)
    blocks = (KroneckerBlock(*(torch.from_numpy(array).float() for array in curvature)),)
    squared_norm = float(sum(weight.double().square().sum() for weight in head.values()))
    likelihood = float(log_probabilities(probabilities[np.arange(len(data.labels)), data.labels]).sum())
    record = FitRecord("laplace-head", data.name, data.split, data.revision, len(data.labels))

    def at(precision: float, **settings: float) -> KroneckerPosterior:
        evidence = {"log_marginal_likelihood": likelihood + curvature.log_evidence(squared_norm, precision)}
        fit = replace(record, settings={"prior_precision": float(precision), **evidence, **settings})
        return KroneckerPosterior(own, own.flatten(head), blocks, adapter.record, fit, adapter.saved)

    if held_out is not None:
        inputs = features_of.of_rows(held_out.rows, **reading)

        def nll(posterior: KroneckerPosterior, *, at_mean: bool = False) -> float:
            drawn = replace(sampling, scale=0.0) if at_mean else sampling
            return _nll(posterior, inputs, held_out.labels, drawn)

        return with_best_prior(at, nll, num_held_out=len(held_out.labels), num_samples=sampling.num_samples)
    if prior_precision is None:
        prior_precision = curvature.best_prior_precision(squared_norm)
        _warn_of_a_wide_prior(at(prior_precision), features, data.labels, -likelihood / len(data.labels), sampling)
    return at(prior_precision)


class HeadCurvature(NamedTuple):
    """Eigenvectors and eigenvalues of the two factors of the head's Gauss-Newton matrix; float64.

    Attributes:
        left_vectors, left_values: Of mean_n (diag(p_n) - p_n p_n^T). Shapes (C, C) and (C,).
        right_vectors, right_values: Of sum_n f_n f_n^T. Shapes (h, h) and (h,), h + 1 with a bias.
    """

    left_vectors: np.ndarray
    left_values: np.ndarray
    right_vectors: np.ndarray
    right_values: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, probabilities: np.ndarray, *, has_bias: bool) -> HeadCurvature:
        """Compute it from the head's inputs (N, h) and the probabilities (N, C) of the training examples."""
        inputs = features.astype(np.float64)
        if has_bias:
            inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
        left = np.diag(probabilities.mean(0)) - probabilities.T @ probabilities / len(probabilities)
        left_values, left_vectors = np.linalg.eigh(left)
        right_values, right_vectors = np.linalg.eigh(inputs.T @ inputs)
        return cls(left_vectors, left_values.clip(0), right_vectors, right_values.clip(0))

    def log_evidence(self, squared_norm: float, prior_precision: float) -> float:
        """Return the logarithm of the marginal likelihood less that of the likelihood.

        Args:
            squared_norm: |W|^2 of the head.
            prior_precision: tau.
        """
        curvature = np.outer(self.left_values, self.right_values)
        determinant = np.log(curvature + prior_precision).sum()
        return (curvature.size * math.log(prior_precision) - prior_precision * squared_norm - determinant) / 2

    def best_prior_precision(self, squared_norm: float) -> float:
        """Return the tau of the highest marginal likelihood, between 1e-4 and 1e6."""
        found = minimize_scalar(
            lambda power: -self.log_evidence(squared_norm, 10**power), bounds=_PRIOR_RANGE, method="bounded"
        )
        return 10 ** float(found.x)


def _nll(posterior: KroneckerPosterior, features: np.ndarray, labels: np.ndarray, sampling: Sampling) -> float:
    """Return the NLL of the averaged probabilities of draws of the head, from its inputs (N, h)."""
    draws = posterior.draw(sampling.num_samples, seed=sampling.seed, scale=sampling.scale, design=sampling.design)
    drawn, inputs = posterior.layout.unflatten(draws.vectors), torch.from_numpy(features).float()
    weight = next(value for key, value in drawn.items() if value.dim() == 3)
    bias = next((value for key, value in drawn.items() if value.dim() == 2), weight.new_zeros(weight.shape[:2]))
    logits = torch.einsum("nh,sch->snc", inputs, weight) + bias[:, None]
    return float(negative_log_likelihood(logits.double().softmax(dim=-1).mean(dim=0).numpy(), labels))


def _warn_of_a_wide_prior(
    posterior: KroneckerPosterior, features: np.ndarray, labels: np.ndarray, at_mean: float, sampling: Sampling
) -> None:
    drawn = _nll(posterior, features, labels, sampling)
    if drawn > at_mean + _MOST_RISE:
        warnings.warn(
            f"Draws at the prior precision of the highest marginal likelihood, {posterior.prior_precision:.3g}, raise the NLL of the training "
            f"examples from {at_mean:.3g} to {drawn:.3g}: the prior is too wide for this model. Pass held_out=..., examples that it was not "
            "trained on, to choose the precision by their NLL.",
            UserWarning,
            stacklevel=4,
        )


def _head(weights: Mapping[str, Tensor], features: np.ndarray, probabilities: np.ndarray) -> dict[str, Tensor]:
    """Return the weight and bias that turn the features into the model's probabilities, by key.

    Raises:
        SwagError: No weight of the adapter does.
    """
    shape = (probabilities.shape[1], features.shape[1])
    for key in (key for key, weight in weights.items() if tuple(weight.shape) == shape and rank_axis(key) is None):
        bias_key = key.removesuffix("weight") + "bias"
        head = {key: weights[key]} | ({bias_key: weights[bias_key]} if bias_key in weights else {})
        logits = features.astype(np.float64) @ weights[key].double().numpy().T
        if bias_key in weights:
            logits += weights[bias_key].double().numpy()
        if np.abs(softmax(logits, axis=1) - probabilities).max() < _TOLERANCE:
            return head
    raise SwagError(
        f'No weight of the adapter is the head, of shape {list(shape)}: method="laplace-head" needs an adapter that trained the head itself, '
        'with LoraConfig(modules_to_save=[...]). Use method="tfb".'
    )
