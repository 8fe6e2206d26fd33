"""TFB: training-free Bayesianisation of a trained LoRA adapter (Shi et al. 2024, arXiv:2412.05723)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import default_data_collator

from swag_trainer.adapters.plain_lora import rank_axis
from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.errors import SwagError
from swag_trainer.fitting.adapter import TrainedAdapter
from swag_trainer.fitting.loss import averaged_nll
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.mean_field import MeanFieldPosterior
from swag_trainer.prediction.sampler import Sampling

EPSILON = 0.003
_SMALLEST = 1e-6  # of the largest singular value: directions that B does not have
_MOST_EVALUATIONS = 16
_PRECISION = 1.04
_MARGIN = 1.015  # beyond the guess, so that the next one lies on the other side of the limit


def fit_tfb(
    adapter: TrainedAdapter,
    data: HeldOut,
    *,
    epsilon: float = EPSILON,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> MeanFieldPosterior:
    """Put the largest noise on LoRA's A that the loss allows.

    With the thin SVD B = U diag(d) V^T the adapter is rewritten as B' = U diag(d) and A' = V^T A, which is the same function. Then row i of
    A' is normal with standard deviation sigma / d_i, so that sigma is the standard deviation of the layer's update along every direction
    of U. sigma is the largest at which the NLL of the averaged probabilities on ``data`` is at most ``epsilon`` above the mean's; it is
    stored as the variance, and the posterior's scale is 1. Heads and whatever else was trained stay as they are.

    Args:
        adapter: A LoRA adapter.
        data: Labelled examples.
        epsilon: How much the NLL may rise, in nats for each example; > 0.
        sampling: How many draws, and with which seed, the NLL is estimated.
        batch_size, data_collator, progress: As for `MonteCarloPredictor`.

    Raises:
        SwagError: The adapter has no LoRA matrices, noise of any size leaves the NLL as low, or an epsilon that is not positive.
    """
    if not 0 < epsilon < float("inf"):
        raise SwagError(f"epsilon is a rise of the NLL in nats and must be finite and > 0, got {epsilon}.")
    mean, variance = rotated(adapter.values())
    if not mean:
        raise SwagError("TFB is for LoRA adapters, and this adapter has no matrices A and B.")
    layout = WeightLayout.of(mean)
    posterior = MeanFieldPosterior(
        layout,
        layout.flatten(mean),
        layout.flatten(variance),
        adapter.record,
        FitRecord("tfb", data.name, data.split, data.revision, len(data.labels)),
        adapter.saved.with_weights(mean),
    )

    reading: dict[str, Any] = {"batch_size": batch_size, "data_collator": data_collator, "progress": progress}

    @functools.cache
    def nll(sigma: float) -> float:
        return averaged_nll(adapter, posterior, data, sampling, scale=sigma**2, **reading)

    at_mean = nll(0.0)
    sigma, reached = largest(lambda sigma: nll(sigma) - at_mean, epsilon, start=typical_update(mean) / 8)
    if not reached:
        raise SwagError(
            f"Noise of any size raises the NLL on these {len(data.labels)} examples by less than {epsilon:g}: with the adapter it is "
            f"{at_mean:.3f}, with sigma={sigma:.2g} {nll(sigma):.3f}. Was the adapter trained, on these classes, and do the labels fit?"
        )
    found = {"sigma": sigma, "epsilon": epsilon, "nll_at_mean": at_mean, "nll": nll(sigma), "num_samples": sampling.num_samples}
    return replace(
        posterior,
        variance=posterior.variance * sigma**2,
        fit=replace(posterior.fit, settings={name: float(value) for name, value in found.items()}),
    )


def rotated(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return B' and A' of every pair, and their variances at sigma 1, by key; weights of other kinds are left out."""
    mean: dict[str, Tensor] = {}
    variance: dict[str, Tensor] = {}
    for a_key in sorted(key for key in weights if rank_axis(key) == 0):
        b_key = _key_of_b(a_key)
        if b_key not in weights:
            continue
        a, b = weights[a_key], weights[b_key]
        u, d, vt = torch.linalg.svd(b.flatten(1).double(), full_matrices=False)
        if len(d) < len(a):  # fewer outputs than the rank: the other rows of A have no effect
            u = torch.nn.functional.pad(u, (0, len(a) - len(d)))
            vt = torch.linalg.svd(b.flatten(1).double(), full_matrices=True)[2]
            d = torch.nn.functional.pad(d, (0, len(a) - len(d)))
        mean[b_key] = (u * d).float().reshape(b.shape)
        mean[a_key] = (vt @ a.flatten(1).double()).float().reshape(a.shape)
        has_effect = d > _SMALLEST * d.max()
        rows = torch.where(has_effect, 1 / torch.where(has_effect, d, 1.0).square(), 0.0).float()
        variance[b_key] = torch.zeros_like(b)
        variance[a_key] = rows.view(-1, *[1] * (a.dim() - 1)).expand(a.shape).clone()
    return mean, variance


def typical_update(mean: Mapping[str, Tensor]) -> float:
    """Return the root mean square of U^T (B A) over all layers: sigma at which the noise is as large as the update itself."""
    total, count = 0.0, 0
    for a_key in (key for key in mean if rank_axis(key) == 0):
        b = mean[_key_of_b(a_key)]
        update = b.flatten(1).norm(dim=0)[:, None] * mean[a_key].flatten(1)
        total += float(update.square().sum())
        count += update.numel()
    return (total / count) ** 0.5 if total else 1.0


def _key_of_b(a_key: str) -> str:
    return a_key.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")


def largest(rise: Callable[[float], float], limit: float, *, start: float) -> tuple[float, bool]:
    """Return the largest sigma whose rise is within a limit, 4 % too small at most, and whether a larger one was found that is not.

    The rise goes with the square of a small sigma, so the next guess is sigma * sqrt(limit / rise), between what is known to be within the
    limit and what is known to be above it.

    Args:
        rise: Of the NLL at a sigma.
        limit: > 0.
        start: The first guess.
    """
    low, high, sigma = 0.0, math.inf, start
    for _ in range(_MOST_EVALUATIONS):
        found = rise(sigma)
        if found <= limit:
            low = max(low, sigma)
            step = min((limit / found) ** 0.5 * _MARGIN if found > 0 else 4.0, 4.0)
        else:
            high = min(high, sigma)
            step = max((limit / found) ** 0.5 / _MARGIN, 1 / 16)
        if low and high < low * _PRECISION:
            break
        sigma *= step
        if low and not low < sigma < high:
            sigma = (low * high) ** 0.5
    return low, high < math.inf
