"""The slow and obvious formulas that the fast code is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dense_covariance(variance: Tensor, deviations: Tensor, scale: float = 1.0) -> Tensor:
    """scale * (diag(variance) / 2 + D D^T / (2 (K - 1))), or scale * diag(variance) without deviations. Shape (P, P), float64."""
    variance, deviations = variance.double(), deviations.double()
    if len(deviations) == 0:
        return scale * torch.diag(variance)
    dense = torch.diag(variance) / 2
    for deviation in deviations:
        dense = dense + torch.outer(deviation, deviation) / (2 * (len(deviations) - 1))
    return scale * dense


def two_pass_moments(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance (divisor n) and the deviation of each vector from the mean of those up to it, in float64."""
    vectors = vectors.double()
    mean = vectors.sum(0) / len(vectors)
    variance = ((vectors - mean) ** 2).sum(0) / len(vectors)
    deviations = torch.stack([vectors[n - 1] - vectors[:n].sum(0) / n for n in range(1, len(vectors) + 1)])
    return mean, variance, deviations


def gauss_newton(logits: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Sum over rows n of J_n^T (diag(p_n) - p_n p_n^T) J_n for one linear layer, a bias as its last input. Shape (o, i, o, i), float64."""
    parameters = [weight] if bias is None else [weight, bias]
    total = torch.zeros(())
    for row in logits:
        gradients = [torch.autograd.grad(logit, parameters, retain_graph=True) for logit in row]
        jacobian = torch.stack(
            [torch.cat([part.reshape(len(weight), -1) for part in parts], dim=1) for parts in gradients]
        ).double()
        probabilities = row.detach().double().softmax(-1)
        hessian = torch.diag(probabilities) - torch.outer(probabilities, probabilities)
        total = total + torch.einsum("coi,cd,dpj->oipj", jacobian, hessian, jacobian)
    return total


def entropy(probabilities: list[float]) -> float:
    """Entropy in nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)
