"""Weights of the classes in the training loss, for classes of unequal size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def balanced_weights(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Return N / (C n_c) for each class c: all classes then count the same, and the mean weight of an example is 1.

    Args:
        targets: Class numbers of the training examples. Shape (N,).
        num_classes: C.

    Returns:
        Shape (C,); 0 for a class without examples.
    """
    counts = np.bincount(targets, minlength=num_classes)
    return np.divide(len(targets), num_classes * counts, out=np.zeros(num_classes), where=counts > 0)


def weighted_loss(weights: np.ndarray) -> Callable[..., Tensor]:
    """Return the cross-entropy with class weights, as the Trainer's ``compute_loss_func`` takes it.

    The sum over the examples is divided by their number, not by the sum of their weights, so that an example counts the same in whatever
    batch it comes.
    """
    values = torch.as_tensor(weights, dtype=torch.float32)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"].float()
        total = cross_entropy(logits, labels, weight=values.to(logits.device), reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss
