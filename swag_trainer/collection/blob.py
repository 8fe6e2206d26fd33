"""Blob: Bayesian LoRA by backpropagation (BLoB, Wang et al. 2024, arXiv:2406.11675), for `VariationalMixin`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from swag_trainer.adapters.peft_layers import lora_layers, lora_obstacle
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.variational import VariationalOptimizer
from swag_trainer.errors import SwagError


@dataclass(frozen=True)
class Blob:
    """A normal distribution over LoRA's A; B and the head are points.

    The entries of A are independent, A ~ N(M, G^4): G is learned by AdamW beside M, which is the adapter's own A. A step minimises the NLL
    under one draw of A plus the KL divergence to N(0, prior_std^2) divided by the number of training examples. The noise of a
    draw is decorrelated over the examples of a batch by random signs (flipout, Wen et al. 2018, arXiv:1803.04386).

    Attributes:
        prior_std: Standard deviation of the prior, > 0; 0.2 in the paper.
        initial_std: The standard deviations of A at the start lie between half of it squared and it squared, > 0; 0.05 in the paper.
        kl_weights: How the KL divergence is spread over the steps of an epoch: "cyclic" as in the paper's code (step i of M gets
            2^i / (2^M - 1) of it, so the last steps get nearly all), or "uniform".
    """

    name: ClassVar[str] = "BLoB"

    prior_std: float = 0.2
    initial_std: float = 0.05
    kl_weights: Literal["cyclic", "uniform"] = "cyclic"

    def __post_init__(self) -> None:
        if not (0 < self.prior_std < math.inf and 0 < self.initial_std < math.inf):
            raise SwagError(f"Blob() needs prior_std > 0 and initial_std > 0, got {self.prior_std} and {self.initial_std}.")
        if self.kl_weights not in ("cyclic", "uniform"):
            raise SwagError(f'Blob(kl_weights=...) must be "cyclic" or "uniform", got {self.kl_weights!r}.')

    def settings(self) -> dict[str, float]:
        """Return the numbers that the posterior's record keeps."""
        return {"prior_std": self.prior_std, "initial_std": self.initial_std}

    def optimizer(
        self, weights: AdapterWeights, groups: Iterable[dict[str, Any]], *, learning_rate: float, num_examples: int, epoch: int
    ) -> BlobOptimizer:
        """Make the optimizer, see `VariationalMethod.optimizer`.

        Raises:
            SwagError: A layer is something else than plain LoRA, or there is none.
        """
        matrices = {}
        for name, layer in lora_layers(weights.model, weights.adapter_name):
            obstacle = lora_obstacle(layer, weights.adapter_name)
            if obstacle:
                raise SwagError(f"BLoB is for plain LoRA, and the layer {name!r} {obstacle}.")
            matrices[name] = layer.lora_A[weights.adapter_name]
        if not matrices:
            raise SwagError("BLoB is for LoRA adapters, and this adapter has no matrices A and B.")
        return BlobOptimizer(
            list(matrices.values()), groups, self, learning_rate=learning_rate, num_examples=num_examples, epoch=epoch
        )


class BlobOptimizer(AdamW, VariationalOptimizer):
    """AdamW over the weights and over G, the square roots of the standard deviations of LoRA's A.

    Args:
        matrices: The modules that multiply by A.
        groups: Parameter groups of all trained weights, those of ``matrices`` among them.
        method: The settings.
        learning_rate, num_examples, epoch: As for `VariationalMethod.optimizer`.
    """

    def __init__(
        self,
        matrices: list[nn.Linear],
        groups: Iterable[dict[str, Any]],
        method: Blob,
        *,
        learning_rate: float,
        num_examples: int,
        epoch: int,
    ) -> None:
        self._means = [module.weight for module in matrices]
        low, high = method.initial_std / math.sqrt(2), method.initial_std
        self._roots = [nn.Parameter(torch.empty_like(mean).uniform_(low, high)) for mean in self._means]
        self._prior_variance, self._num_examples = method.prior_std**2, num_examples
        self._epoch, self._is_cyclic, self._num_steps = epoch, method.kl_weights == "cyclic", 0
        super().__init__([*groups, {"params": self._roots, "weight_decay": 0.0}], lr=learning_rate)
        self._hooks = [
            module.register_forward_hook(partial(_add_noise, root=root))
            for module, root in zip(matrices, self._roots, strict=True)
        ]

    def begin_step(self) -> None:
        """Do nothing: every forward draws its own noise."""

    def end_backward(self) -> None:
        """Add the gradient of the KL divergence to that of the NLL."""
        weight = self.kl_weight() / self._num_examples
        for mean, root in zip(self._means, self._roots, strict=True):
            to_mean, to_root = kl_gradients(mean, root, self._prior_variance)
            for parameter, gradient in ((mean, to_mean), (root, to_root)):
                own = gradient * weight
                parameter.grad = own if parameter.grad is None else parameter.grad + own
        self._num_steps += 1

    def step(self, closure: None = None) -> None:
        """Take AdamW's step, and clear the gradients of G, which the Trainer does not know."""
        super().step(closure)
        for root in self._roots:
            root.grad = None

    def kl_weight(self) -> float:
        """Return by how much the KL divergence counts in this step; 1 in the mean over an epoch."""
        if not self._is_cyclic:
            return 1.0
        remaining = self._epoch - 1 - self._num_steps % self._epoch
        return self._epoch * 0.5**remaining * 0.5 / (1 - 0.5**self._epoch)

    def variance(self, parameter: nn.Parameter) -> Tensor:
        """Return G^4 of an A, and zeros of other weights."""
        for mean, root in zip(self._means, self._roots, strict=True):
            if mean is parameter:
                return root.detach().float() ** 4
        return torch.zeros_like(parameter, dtype=torch.float32)

    def close(self) -> None:
        """Take the noise out of the model."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return AdamW's state, with G and the number of steps."""
        return super().state_dict() | {"roots": [root.detach() for root in self._roots], "num_steps": self._num_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        rest = {name: value for name, value in state_dict.items() if name not in ("roots", "num_steps")}
        super().load_state_dict(rest)
        with torch.no_grad():
            for root, stored in zip(self._roots, state_dict["roots"], strict=True):
                root.copy_(stored)
        self._num_steps = int(state_dict["num_steps"])


def kl_divergence(mean: Tensor, root: Tensor, prior_variance: float) -> Tensor:
    """Return the KL divergence of N(mean, root^4) to N(0, prior_variance), summed over the entries; appendix A of arXiv:2406.11675."""
    std = root.square()
    return (math.log(prior_variance) / 2 - std.log() + (std.square() + mean.square()) / (2 * prior_variance) - 0.5).sum()


def kl_gradients(mean: Tensor, root: Tensor, prior_variance: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of `kl_divergence`."""
    return mean / prior_variance, 2 * root**3 / prior_variance - 2 / root


def _add_noise(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, *, root: Tensor) -> Tensor:
    """Forward hook of a module that multiplies by A: one draw of A's noise, with random signs for each example (flipout)."""
    if not module.training:
        return output
    (x,) = inputs
    noise = (torch.randn_like(root) * root.square()).to(x.dtype)
    ones = [1] * (x.dim() - 2)
    before, after = (_signs((len(x), *ones, size), like=x) for size in (x.shape[-1], output.shape[-1]))
    return output + nn.functional.linear(x * before, noise) * after


def _signs(shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    return torch.randint(0, 2, shape, device=like.device, dtype=torch.int8).to(like.dtype) * 2 - 1
