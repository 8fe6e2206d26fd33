"""Laplace's approximation over the classification head of a trained adapter (Daxberger et al. 2021, arXiv:2106.14806)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from swag_trainer.metrics.scores import log_probabilities
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


def fit_head_laplace(
    adapter: TrainedAdapter,
    data: HeldOut,
    *,
    prior_precision: float | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> KroneckerPosterior:
    """Fit a Gaussian to the head's weights: one forward of the data, and draws of the head alone afterwards.

    With the head's inputs f_n (a 1 appended for the bias) and probabilities p_n the Gauss-Newton matrix of the loss,
    sum_n (diag(p_n) - p_n p_n^T) (x) f_n f_n^T, is approximated by the Kronecker product of its factors' sums over N (KFAC, Ritter et al.
    2018), mean_n (diag(p_n) - p_n p_n^T) (x) sum_n f_n f_n^T. The prior is normal with mean 0 and precision tau, by default that of the highest
    marginal likelihood, log p(D | W) - tau |W|^2 / 2 + (P / 2) log tau - log det(H + tau I) / 2.

    Args:
        adapter: An adapter that trained the head (``modules_to_save``).
        data: The training examples.
        prior_precision: tau; None for that of the highest marginal likelihood, between 1e-4 and 1e6.
        sampling: Not used: nothing is drawn.
        batch_size, data_collator, progress: As for `MonteCarloPredictor`.

    Raises:
        SwagError: The adapter did not train the head, or a prior precision that is not positive.
    """
    if prior_precision is not None and not 0 < prior_precision < math.inf:
        raise SwagError(f"prior_precision must be finite and > 0, got {prior_precision}.")
    weights = adapter.values()
    layout = WeightLayout.of(weights)
    point = PointPosterior(layout, layout.flatten(weights), adapter.record, adapter.saved)
    reading: dict[str, Any] = {"data_collator": data_collator, "batch_size": batch_size}
    name = adapter.weights.adapter_name
    features = MeanFeatures(adapter.model, point, task=adapter.task, adapter_name=name).of_rows(data.rows, **reading)
    predictor = MonteCarloPredictor(adapter.model, point, task=adapter.task, adapter_name=name, progress=progress, **reading)
    probabilities = predictor.predict(data.rows).probabilities
    head = _head(weights, features, probabilities)
    curvature = HeadCurvature.of(features, probabilities, has_bias=len(head) == 2)
    squared_norm = float(sum(weight.double().square().sum() for weight in head.values()))
    if prior_precision is None:
        prior_precision = curvature.best_prior_precision(squared_norm)
    likelihood = float(log_probabilities(probabilities[np.arange(len(data.labels)), data.labels]).sum())
    settings = {
        "prior_precision": float(prior_precision),
        "log_marginal_likelihood": likelihood + curvature.log_evidence(squared_norm, prior_precision),
    }
    own = WeightLayout.of(head)
    return KroneckerPosterior(
        own,
        own.flatten(head),
        (KroneckerBlock(*(torch.from_numpy(array).float() for array in curvature)),),
        adapter.record,
        FitRecord("laplace-head", data.name, data.split, data.revision, len(data.labels), settings),
        adapter.saved,
    )


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
