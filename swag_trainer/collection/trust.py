"""Trust between clients that train apart: how much each counts for another (Wagner, Fan, Jaggi 2024, arXiv:2404.09753)."""

from __future__ import annotations

import torch
from torch import Tensor

from swag_trainer.posterior.layout import WeightLayout

PREDICTION_SHARPNESS = 10.0  # factor of the normalised distances, as in the paper
TOP_LOGITS = 100  # how many logits of an example are compared, as in the paper


def trust_by_weights(vectors: Tensor, layout: WeightLayout, client: int) -> Tensor:
    """Return trust by the similarity of weights: the softmax over clients of the mean cosine between rows of all trained tensors.

    Args:
        vectors: The adapters' weights. Shape (n, P).
        layout: Their keys and shapes; a tensor of one dimension is one row.
        client: Whose trust.

    Returns:
        Shape (n,), sums to 1.
    """
    total, count = torch.zeros(len(vectors), dtype=torch.float64), 0
    for stacked in layout.unflatten(vectors).values():
        rows = stacked.double().reshape(len(vectors), stacked.shape[1] if stacked.dim() > 2 else 1, -1)
        cosines = torch.nn.functional.cosine_similarity(rows, rows[client], dim=-1)
        total, count = total + cosines.sum(1), count + cosines.shape[1]
    return (total / count).softmax(0)


def trust_by_validation(losses: Tensor) -> Tensor:
    """Return trust by validation: the softmax over clients of minus the perplexity.

    Args:
        losses: Mean NLL of every client's model on the trusting client's validation examples, in nats. Shape (n,). What is not finite gets
            no trust.

    Returns:
        Shape (n,), sums to 1.
    """
    perplexities = torch.where(losses.isfinite(), losses.double(), torch.inf).exp()
    if not perplexities.isfinite().any():
        return torch.full_like(perplexities, 1 / len(perplexities))
    return (-perplexities).softmax(0)


def trust_by_predictions(logits: Tensor, client: int) -> Tensor:
    """Return trust by agreement: the softmax over clients of -10 times the normalised mean L1 distance of the logits.

    Args:
        logits: Every client's logits of shared examples. Shape (n, N, C). Of more than a hundred classes, the hundred with the client's
            highest logits are compared for each example.
        client: Whose trust.

    Returns:
        Shape (n,), sums to 1.
    """
    logits = logits.double()
    if logits.shape[-1] > TOP_LOGITS:
        chosen = logits[client].topk(TOP_LOGITS).indices
        logits = logits.gather(-1, chosen.expand(len(logits), -1, -1))
    distances = (logits - logits[client]).abs().mean((1, 2))
    total = distances.sum()
    return (-PREDICTION_SHARPNESS * distances / total).softmax(0) if total else torch.full_like(distances, 1 / len(distances))
