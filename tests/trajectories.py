"""What an independent witness of a training run saw, and the posterior that must come of it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from oracles import two_pass_moments
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import TrainerCallback

from swag_trainer import SwagPosterior
from swag_trainer.collection.collector import SwagCollector


class Witness(TrainerCallback):
    """Writes down what the adapter's file would hold after every optimizer step, in PEFT's own words."""

    def __init__(self, adapter_name: str = "default"):
        self.adapter_name = adapter_name
        self.weights: dict[int, dict[str, Tensor]] = {}

    def adapter_in(self, model) -> dict[str, Tensor]:
        return get_peft_model_state_dict(model, adapter_name=self.adapter_name, save_embedding_layers=False)

    def on_step_end(self, args, state, control, *, model, **kwargs):
        self.weights[state.global_step] = {key: weight.detach().clone() for key, weight in self.adapter_in(model).items()}

    def vectors(self, steps: Iterable[int]) -> Tensor:
        """The weights at some steps as rows, key after key in the alphabet."""
        return torch.stack(
            [torch.cat([weight.flatten() for _, weight in sorted(self.weights[step].items())]) for step in steps]
        )


def assert_posterior_of(posterior: SwagPosterior, witness: Witness, steps: Iterable[int]) -> None:
    """The posterior is that of what the witness saw at these steps, weight by weight, and of nothing else.

    The tolerances are those of Welford's float32 statistics against float64 over two passes; of a compressed file also those of bfloat16.
    """
    steps = list(steps)
    rounding = 0.0 if posterior.compression is None else 2**-8
    assert posterior.collection.steps == steps
    assert set(posterior.layout.keys) == set(witness.weights[steps[0]])
    mean, variance, deviations = two_pass_moments(witness.vectors(steps))
    gaussian = posterior.gaussian
    torch.testing.assert_close(gaussian.mean.double(), mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gaussian.variance.double(), variance, rtol=1e-4 + rounding, atol=1e-12)
    kept = deviations[len(deviations) - posterior.rank :]
    atol = 1e-6 + 2 * rounding * float(kept.abs().max())  # the rotation spreads the rounding of a large number over small ones
    torch.testing.assert_close(gaussian.deviations.double(), kept, rtol=1e-4, atol=atol)
    if posterior.rank:
        vectors = witness.vectors(steps).double()
        number = min(-(-3 * len(steps) // 10), posterior.rank)
        for name, snapshots in (("tail", vectors[-number:]), ("last", vectors[-1:])):
            torch.testing.assert_close(posterior.center(name).double(), snapshots.mean(0), rtol=1e-5, atol=atol)


def same(one: SwagPosterior, other: SwagPosterior) -> bool:
    """Do two posteriors agree in every bit of their tensors? Where one was read from a compressed file: in what such a file gives back."""
    if (one.compression is None) != (other.compression is None):
        one, other = one.stored_as("bfloat16"), other.stored_as("bfloat16")
    parts = ("mean", "variance", "deviations")
    return one.layout == other.layout and all(torch.equal(getattr(one.gaussian, p), getattr(other.gaussian, p)) for p in parts)


def random_posterior(model: PeftModel, *, snapshots: int = 3, rank: int = 2, spread: float = 0.1) -> SwagPosterior:
    """A posterior of random steps of a model's adapter, the mean of which goes into the model."""
    collector = SwagCollector(model, rank=rank)
    for step in range(snapshots):
        with torch.no_grad():
            for parameter in collector.weights.parameters():
                parameter += spread * torch.randn_like(parameter)
        collector.collect(step=step + 1, learning_rate=1e-3)
    return collector.finish()
