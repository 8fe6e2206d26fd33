"""MC dropout: predictions of weight draws by a model that drops out as in training (Gal and Ghahramani 2016, arXiv:1506.02142)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import SwagError
from swag_trainer.prediction.sequential import SequentialSampler
from swag_trainer.tasks.base import Task


class DropoutSampler:
    """Logits of S draws for a batch, one draw after the other, each with a dropout mask of its own.

    The masks depend on the seed, on the batches since `restart`, and on which rows share a batch. The random state of the process is
    left as it was.

    Args:
        weights: The weights in a private copy of the model, which is written to and put into training mode.
        draws: Shape (S, P).
        task: What of the model's outputs is predicted.
        seed: Of the masks.
    """

    def __init__(self, weights: AdapterWeights, draws: Tensor, *, task: Task, seed: int) -> None:
        self._plain = SequentialSampler(weights, draws, task=task)
        self._seed = seed
        self._states: list[Tensor] | None = None
        # The whole copy, not its Dropout modules alone: attention asks itself whether it trains before it drops anything out.
        weights.model.train()
        for module in weights.model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()  # would take the batch's statistics, and write them into tensors shared with the user's model

    def restart(self) -> None:
        """Begin with the masks of the first batch again."""
        self._states = None

    def __call__(self, batch: Mapping[str, Tensor], draws: Tensor | None = None) -> Tensor:
        """Return the logits of every draw. Shape (S, E, C), on the model's device.

        Args:
            batch: What the model takes.
            draws: Other draws than those this was made with. Shape (S', P).

        Raises:
            SwagError: Nothing in the model drops out.
        """
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            if self._states is None:
                torch.manual_seed(self._seed)
            else:
                _set_random_states(self._states)
            before = _random_states()
            logits = self._plain(batch, draws)
            self._states = _random_states()
        if all(map(torch.equal, before, self._states)):
            raise SwagError(
                "The passes with dropout took no random numbers: nothing in this model drops out. Was it trained with dropout 0? Leave "
                'dropout=True (the method "MC dropout") out.'
            )
        return logits


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def _set_random_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1:])
