"""CollaborationCallback: clients that average their adapters by trust while each trains on its own data (arXiv:2404.09753)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.clients import Clients
from swag_trainer.collection.trainer_access import TrainerAware, evaluate_without_logging, preserved_random_states
from swag_trainer.collection.trust import trust_by_predictions, trust_by_validation, trust_by_weights
from swag_trainer.errors import SwagError

TrustScheme = Literal["validation", "weights", "predictions", "uniform", "none"]


class CollaborationCallback(TrainerAware, TrainerCallback):
    """Replaces a client's adapter every few steps by an average of all clients' adapters, weighted by its trust in each.

    One process for each client, started without torchrun, with the same model, the same number of steps and its own data::

        swag = SwagCallback()
        together = CollaborationCallback(client=2, num_clients=4, rendezvous="tcp://10.0.0.1:29500", every=25)
        Trainer(..., eval_dataset=validation, callbacks=[together, swag]).train()

    Only adapter weights travel, and under "predictions" the logits of ``shared_data``. The callback stands before `SwagCallback`, so that what
    is collected is what goes on training. A client may also mix the finished posteriors of all clients by its trust:
    ``PosteriorMixture.of(posteriors, weights=together.trust[last_step].tolist())``.

    Args:
        client: The number of this client, from 0.
        num_clients: How many there are, at least 2.
        rendezvous: "tcp://host:port", where client 0 listens, or the path of a new file that all clients see.
        scheme: How trust is measured. "validation": the softmax of minus the perplexity of every client's model on this client's
            ``eval_dataset``, which costs an evaluation for each client; "weights": of the similarity of weights; "predictions": of the agreement
            on ``shared_data``; "uniform": all count alike (federated averaging); "none": every client alone.
        every: Steps between two averages.
        warmup: Steps before the first.
        shared_data: Examples as the Trainer takes them, the same for every client; labels are not used.
        timeout: How long to wait for the others, in seconds.
        adapter_name: Which adapter; default: the active one.

    Attributes:
        trust: This client's trust in each client at every average, by step. Shapes (n,); sums to 1.

    Raises:
        SwagError: A setting is out of range.
    """

    def __init__(
        self,
        *,
        client: int,
        num_clients: int,
        rendezvous: str,
        scheme: TrustScheme = "validation",
        every: int = 25,
        warmup: int = 0,
        shared_data: Sequence[Any] | None = None,
        timeout: float = 600.0,
        adapter_name: str | None = None,
    ) -> None:
        if scheme not in get_args(TrustScheme):
            raise SwagError(f"scheme must be one of {get_args(TrustScheme)}, got {scheme!r}.")
        if every < 1 or warmup < 0:
            raise SwagError(f"every must be at least 1 and warmup at least 0, got {every} and {warmup}.")
        if (scheme == "predictions") != (shared_data is not None):
            raise SwagError('scheme="predictions" and shared_data belong together: pass both or none.')
        self.client, self.num_clients, self.rendezvous = client, num_clients, rendezvous
        self.scheme, self.every, self.warmup, self.shared_data = scheme, every, warmup, shared_data
        self.timeout, self.adapter_name = timeout, adapter_name
        self.trust: dict[int, Tensor] = {}
        self._clients: Clients | None = None
        self._weights: AdapterWeights | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **kwargs: Any
    ) -> None:
        """Meet the other clients, and compare what must be the same.

        Raises:
            SwagError: The others did not come, train other weights or other numbers of steps, or there is nothing to measure trust on.
        """
        if self.scheme == "validation" and self._trainer(state).eval_dataset is None:
            raise SwagError('scheme="validation" measures trust on eval_dataset: pass one to the Trainer.')
        self._weights = AdapterWeights(model, self.adapter_name)
        self._clients = self._clients or Clients(self.client, self.num_clients, self.rendezvous, timeout=self.timeout)
        what = [self._weights.layout, state.max_steps, state.global_step, self.scheme, self.every, self.warmup]
        digest = int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7], "big")
        others = self._clients.gather(torch.tensor(digest)).tolist()
        if len(set(others)) > 1:
            differs = next(number for number, other in enumerate(others) if other != digest)
            raise SwagError(
                f"Client {differs} has other adapter weights, another number of steps, or another scheme, every or warmup than client "
                f"{self.client}. All clients need the same, and resume from the same step."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Average the adapters if it is time."""
        step = state.global_step - self.warmup
        if self.scheme == "none" or step <= 0 or step % self.every:
            return
        layout = self._weights.layout
        vectors = self._clients.gather(layout.flatten(self._weights.read()))
        self.trust[state.global_step] = trust = self._measure(vectors, state)
        mixed = (trust @ vectors.double()).float()
        self._weights.write(layout.unflatten(mixed))

    def _measure(self, vectors: Tensor, state: TrainerState) -> Tensor:
        """Return this client's trust in each client, float64."""
        layout = self._weights.layout
        if self.scheme == "weights":
            return trust_by_weights(vectors, layout, self.client)
        if self.scheme == "predictions":
            return trust_by_predictions(self._clients.gather(self._logits(state)), self.client)
        if self.scheme == "validation":
            losses = []
            for vector in vectors:
                with self._weights.replaced_by(layout.unflatten(vector)):
                    losses.append(evaluate_without_logging(self._trainer(state), None)["eval_loss"])
            return trust_by_validation(torch.tensor(losses))
        return torch.full((self.num_clients,), 1 / self.num_clients, dtype=torch.float64)

    def _logits(self, state: TrainerState) -> Tensor:
        """Return the logits of the shared examples. Shape (N, C)."""
        trainer = self._trainer(state)
        with preserved_random_states():
            predicted = trainer.evaluation_loop(trainer.get_test_dataloader(self.shared_data), description="Shared examples")
        return torch.as_tensor(predicted.predictions).float()

    def _trainer(self, state: TrainerState) -> Trainer:
        trainer = self.find_trainer(state)
        if trainer is None:
            raise SwagError("CollaborationCallback cannot find its Trainer: call attach(trainer) before trainer.train().")
        return trainer
