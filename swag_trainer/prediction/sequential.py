"""The plain way to the logits of S draws: one forward each. Right for every adapter that PEFT has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from swag_trainer.adapters.weights import AdapterWeights


class SequentialSampler:
    """Logits of S draws for a batch, one draw after the other.

    Args:
        weights: The weights in a private copy of the model, which is written to.
        draws: Shape (S, P).
    """

    def __init__(self, weights: AdapterWeights, draws: Tensor) -> None:
        self._weights = weights
        self._draws = draws

    def __call__(self, batch: Mapping[str, Any], draws: Tensor | None = None) -> Tensor:
        """Return the logits of every draw. Shape (S, B, C), on the model's device.

        Args:
            batch: What the model takes.
            draws: Other draws than those this was made with. Shape (S', P).
        """
        logits = []
        with torch.inference_mode():
            for draw in self._draws if draws is None else draws:
                self._weights.write(self._weights.layout.unflatten(draw))
                logits.append(logits_of(self._weights.model(**batch)))
        return torch.stack(logits)


def logits_of(outputs: Any) -> Tensor:
    """The logits in what a model returned. Shape (B, C)."""
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
