"""Distillation: one adapter that learns the averaged predictions of weight draws on the training texts (Hinton et al. 2015)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from study.tasks import Examples
from study.training import batch_order
from swag_trainer.adapters.weights import AdapterWeights

STEPS = 150
LEARNING_RATE = 1e-3


def distil(weights: AdapterWeights, start: Tensor, train: Examples, targets: np.ndarray, *, seed: int) -> Tensor:
    """Return the weights after training on soft targets, with dropout, at a rate that falls linearly to zero.

    Args:
        weights: In a model that is trained.
        start: Where training begins. Shape (P,).
        train: The training examples.
        targets: Probabilities for each of them. Shape (N, C).
        seed: Of batches and dropout.

    Returns:
        Shape (P,).
    """
    weights.write(weights.layout.unflatten(start))
    model, soft = weights.model.train(), torch.from_numpy(targets).float()
    optimizer = torch.optim.AdamW(weights.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    torch.manual_seed(seed)
    for step, chosen in enumerate(batch_order(train, STEPS, seed=seed)):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        functional.cross_entropy(model(**train.padded(chosen)).logits, soft[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return weights.layout.flatten(weights.read()).clone()
