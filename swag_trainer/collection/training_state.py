"""State of a model and an optimizer in training: which weights train, and which point the optimizer evaluates at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from swag_trainer.adapters.keys import active_adapter
from swag_trainer.adapters.peft_layers import adapter_layers, is_disabled, is_merged
from swag_trainer.adapters.rank_allocation import final_budget_step, kept_ranks
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import SwagError


class TrainedWeights:
    """Which weights of a model train, and whether they still do.

    Args:
        weights: Those of the adapter.

    Attributes:
        names: Of the parameters with ``requires_grad``.
    """

    def __init__(self, weights: AdapterWeights) -> None:
        self._weights = weights
        self.names = self._training_now()
        self._ranks: dict[str, list[bool]] | None = None
        self._is_first = True

    @property
    def have_changed(self) -> bool:
        """Whether other weights train now."""
        return self._training_now() != self.names

    def check(self, step: int) -> None:
        """Check that the same weights of the same adapter train as before, and that it has the same ranks.

        Args:
            step: Number of the optimizer step, for the error.

        Raises:
            SwagError: Some were frozen or began to train, ranks were taken away, or the adapter is merged, switched off or no longer the active one.
        """
        model, name = self._weights.model, self._weights.adapter_name
        if (now := active_adapter(model)) != name:
            raise SwagError(
                f"At step {step} the active adapter is {now!r}, and {name!r} is collected: its weights no longer train. Train one adapter "
                "at a time, each with a SwagCallback(adapter_name=...) of its own."
            )
        for place, layer in adapter_layers(model):
            if is_merged(layer) or is_disabled(layer):
                state = "merged into the base" if is_merged(layer) else "switched off"
                raise SwagError(
                    f"At step {step} the adapter {name!r} is {state} at {place!r}, so its weights do not train as they are collected. Merge "
                    "adapters after training, or undo it before the next step."
                )
        ranks = kept_ranks(model, name)
        if not self._is_first and ranks != self._ranks:
            raise SwagError(
                f"At step {step} AdaLoRA took away ranks while weights were being collected: a posterior is of the same ranks in every "
                f"snapshot. They are final at step {final_budget_step(model, name)} (total_step - tfinal); collect from there on."
            )
        self._ranks, self._is_first = ranks, False
        if self.have_changed:
            changed = sorted(self._training_now() ^ self.names)
            verb = "began to train" if changed[0] not in self.names else "was frozen"
            raise SwagError(
                f"At step {step} {changed[0]!r} {verb} while weights were being collected ({len(changed)} changed): a posterior is of the "
                "same weights in every snapshot. Freeze and unfreeze before the first collection, or start it later: "
                "SwagCallback(Evenly(start=...))."
            )

    def _training_now(self) -> set[str]:
        return {name for name, parameter in self._weights.model.named_parameters() if parameter.requires_grad}


@contextlib.contextmanager
def at_evaluated_weights(optimizer: Any) -> Iterator[None]:
    """Put into the model the weights that an optimizer evaluates with, for the length of a ``with`` block.

    Schedule-free optimizers (Defazio et al. 2024, arXiv:2405.15682) train at another point than the one they have learned; their
    ``eval()`` and ``train()`` move the model between the two. Others have no such methods, and nothing happens.
    """
    leave_at_evaluated_weights(optimizer)
    yield
    if _has_two_points(optimizer):
        optimizer.train()


def leave_at_evaluated_weights(optimizer: Any) -> None:
    """Put the weights that an optimizer evaluates with into the model, at the end of training."""
    if _has_two_points(optimizer):
        optimizer.eval()


def _has_two_points(optimizer: Any) -> bool:
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    return (
        callable(getattr(inner, "eval", None)) and callable(getattr(inner, "train", None)) and not isinstance(inner, nn.Module)
    )
