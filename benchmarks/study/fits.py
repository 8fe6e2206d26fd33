"""Recipes of the study that need no trajectory: TFB, and Laplace's approximations over the head and over LoRA, all of the last weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from study.predictions import NUM_SAMPLES, Draw, Run
from study.recipes import Outcome, average
from swag_trainer.fitting.head_laplace import HeadCurvature
from swag_trainer.fitting.lora_laplace import curvature, linear_layers
from swag_trainer.fitting.prior_precision import lowest_power
from swag_trainer.fitting.tfb import EPSILON, largest, rotated, typical_update
from swag_trainer.metrics.scores import negative_log_likelihood
from swag_trainer.metrics.temperature import fit_temperature, penalised_nll
from swag_trainer.posterior.design import draw_noise
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.kronecker import KroneckerPosterior
from swag_trainer.posterior.record import PosteriorRecord

MAP = Draw("map", collected="decay")
_HEAD = "classifier"
LOGIT_DRAWS = 128
# Prior precisions of the head that are tried on the validation examples.
PRECISIONS = tuple(float(10**power) for power in np.arange(-1, 5.1, 0.5))


def tfb(run: Run) -> Outcome:
    """TFB with sigma by the validation loss, and a temperature."""
    labels, layout = run.data.splits["validation"].labels, run.weights.layout
    mean, variance = rotated(layout.unflatten(run.center(MAP)))
    whole = layout.unflatten(run.center(MAP))
    center = layout.flatten({key: mean.get(key, weight) for key, weight in whole.items()})
    spread = layout.flatten({key: variance.get(key, torch.zeros_like(weight)) for key, weight in whole.items()}).sqrt()
    noise, _ = draw_noise(NUM_SAMPLES, num_weights=layout.size, rank=0, seed=run.seed, design="matched")

    def logits(sigma: float, split: str) -> np.ndarray:
        vectors: Tensor = center + sigma * spread * noise
        return run.predict(MAP, vectors, split)[0].astype(np.float64)

    def nll(sigma: float) -> float:
        return negative_log_likelihood(average(logits(sigma, "validation"), 1.0), labels)

    at_mean = nll(0.0)
    sigma, _ = largest(lambda sigma: nll(sigma) - at_mean, EPSILON, start=typical_update(mean) / 8)
    temperature = fit_temperature(logits(sigma, "validation"), labels)
    return Outcome(average(logits(sigma, "test"), temperature), f"sigma {sigma:.4f}, T {temperature:.3f}")


# Matrix and bias of the head, its curvature, features with a last column of ones, prior precision and seed -> logits (S, N, C).
HeadLogits = Callable[[np.ndarray, HeadCurvature, np.ndarray, float, int], np.ndarray]


def by_draws(matrix: np.ndarray, curvature: HeadCurvature, features: np.ndarray, precision: float, seed: int) -> np.ndarray:
    """Return the logits of ten draws of the head."""
    noise, _ = draw_noise(NUM_SAMPLES, num_weights=matrix.size, rank=0, seed=seed, design="matched")
    variances = 1 / (np.outer(curvature.left_values, curvature.right_values) + precision)
    scaled = noise.view(-1, *matrix.shape).double().numpy() * np.sqrt(variances)
    return np.einsum("nh,sch->snc", features, matrix + curvature.left_vectors @ scaled @ curvature.right_vectors.T)


def in_closed_form(
    matrix: np.ndarray, curvature: HeadCurvature, features: np.ndarray, precision: float, seed: int
) -> np.ndarray:
    """Return draws of the Gaussian that the logits have, as the head is linear in its weights: no head is drawn."""
    squares = (features @ curvature.right_vectors) ** 2
    variances = 1 / (np.outer(curvature.left_values, curvature.right_values) + precision)
    deviations = np.sqrt(squares @ variances.T)  # along the eigenvectors over the outputs
    noise = draw_noise(LOGIT_DRAWS, num_weights=0, rank=len(matrix), seed=seed, design="matched")[1].double().numpy()
    return features @ matrix.T + (noise[:, None] * deviations) @ curvature.left_vectors.T


def head_laplace(
    prior: Literal["marginal likelihood", "validation"], logits_of: HeadLogits = by_draws
) -> Callable[[Run], Outcome]:
    """Return the recipe of Laplace over the head with a temperature, its prior precision chosen in one of two ways."""

    def recipe(run: Run) -> Outcome:
        labels = run.data.splits["validation"].labels
        weights = run.weights.layout.unflatten(run.center(MAP))
        head = {key.rpartition(".")[2]: weight.double().numpy() for key, weight in weights.items() if _HEAD in key}
        matrix = np.concatenate([head["weight"], head["bias"][:, None]], axis=1)
        probabilities = softmax(run.logits(MAP, "train")[0].astype(np.float64), axis=-1)
        curvature = HeadCurvature.of(run.features(MAP, "train"), probabilities, has_bias=True)

        def logits(split: str, precision: float) -> np.ndarray:
            features = run.features(MAP, split).astype(np.float64)
            return logits_of(matrix, curvature, np.pad(features, ((0, 0), (0, 1)), constant_values=1.0), precision, run.seed)

        def penalised(precision: float) -> float:
            passes = logits("validation", precision)
            return penalised_nll(passes, labels, fit_temperature(passes, labels))

        if prior == "validation":
            precision = min(PRECISIONS, key=penalised)
        else:
            precision = curvature.best_prior_precision(float((matrix**2).sum()))
        temperature = fit_temperature(logits("validation", precision), labels)
        return Outcome(average(logits("test", precision), temperature), f"precision {precision:.3g}, T {temperature:.3f}")

    return recipe


def lora_laplace(run: Run) -> Outcome:
    """Laplace over LoRA and head with the prior by the validation loss, and a temperature."""
    labels = run.data.splits["validation"].labels
    power = float(run.kept("laplace-lora.power", lambda: _lora_laplace(run, labels)))

    def logits(split: str) -> np.ndarray:
        return np.load(run.folder / "logits" / f"laplace-lora.{split}.npy").astype(np.float64)

    temperature = fit_temperature(logits("validation"), labels)
    return Outcome(average(logits("test"), temperature), f"precision {10**power:.3g}, T {temperature:.3f}")


def _lora_laplace(run: Run, labels: np.ndarray) -> np.ndarray:
    """Choose the prior precision, and keep the logits of the draws at it. Returns its power of 10."""
    weights, center = run.weights, run.center(MAP)
    weights.write(weights.layout.unflatten(center))
    batches = (batch for _, batch in run.data.splits["train"].batches(32))
    blocks = curvature(linear_layers(weights), batches, lambda batch: weights.model(**batch).logits, seed=run.seed)
    saved = weights.saved()

    def predicted(power: float, split: str) -> np.ndarray:
        fit = FitRecord("laplace", settings={"prior_precision": 10**power})
        kept = tuple(block.without_negligible(10**power) for block in blocks)
        posterior = KroneckerPosterior(weights.layout, center, kept, PosteriorRecord(), fit, saved)
        return run.predict(MAP, posterior.draw(NUM_SAMPLES, seed=run.seed).vectors, split)[0]

    def loss(power: float) -> float:
        return negative_log_likelihood(average(predicted(power, "validation"), 1.0), labels)

    power, _ = lowest_power(loss)
    for split in ("validation", "test"):
        run.kept(f"laplace-lora.{split}", lambda split=split: predicted(power, split))
    return np.array(power)
