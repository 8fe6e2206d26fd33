"""Ivon: the improved variational online Newton method (IVON, Shen et al. 2024, arXiv:2402.17641), for `VariationalMixin`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.variational import VariationalOptimizer
from swag_trainer.errors import SwagError


@dataclass(frozen=True)
class Ivon:
    """A normal distribution over every trained weight, whose variances come from a running estimate of the Hessian's diagonal.

    Every step takes the gradient at a draw of the weights. To make learning rates comparable, they are multiplied by ``hessian +
    weight_decay`` at the start: the first steps are those of SGD with momentum, at rates about 1.

    The defaults are those of the study (docs/benchmarks.md). N far above the number of examples makes a posterior that is colder than Bayes'
    rule. With N as the number of examples the noise drowned the gradient: LoRA on 100 to 500 examples learned nothing.

    Attributes:
        hessian: The Hessian's diagonal at the start, > 0: the variances begin at 1 / (N (hessian + weight_decay)).
        weight_decay: Precision of the prior divided by the number of examples, > 0. It replaces the Trainer's.
        beta1: Of the running mean of the gradients, in [0, 1).
        beta2: Of the running estimate of the Hessian, in [0, 1); near 1, since a single estimate is noisy.
        effective_sample_size: N, by which the variances are divided: a larger one trains with less noise. None for the number of
            training examples.
    """

    name: ClassVar[str] = "IVON"

    hessian: float = 0.01
    weight_decay: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.9995
    effective_sample_size: float | None = 1e5

    def __post_init__(self) -> None:
        size = 1.0 if self.effective_sample_size is None else self.effective_sample_size
        if not all(0 < number < math.inf for number in (self.hessian, self.weight_decay, size)):
            raise SwagError(f"Ivon() needs hessian, weight_decay and effective_sample_size > 0, got {self}.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise SwagError(f"Ivon() needs beta1 and beta2 in [0, 1), got {self.beta1} and {self.beta2}.")

    def settings(self) -> dict[str, float]:
        """Return the numbers that the posterior's record keeps."""
        kept = {name: float(getattr(self, name)) for name in ("hessian", "weight_decay", "beta1", "beta2")}
        return kept | ({} if self.effective_sample_size is None else {"effective_sample_size": self.effective_sample_size})

    def optimizer(
        self, weights: AdapterWeights, groups: Iterable[dict[str, Any]], *, learning_rate: float, num_examples: int, epoch: int
    ) -> IvonOptimizer:
        """Make the optimizer, see `VariationalMethod.optimizer`."""
        parameters = [parameter for group in groups for parameter in group["params"]]
        return IvonOptimizer(parameters, self, learning_rate=learning_rate, num_examples=num_examples)


class IvonOptimizer(VariationalOptimizer):
    """Algorithm 1 of Shen et al. 2024, arXiv:2402.17641.

    Args:
        parameters: The weights, which hold the mean outside of a step.
        method: The settings.
        learning_rate: Of the Trainer, see `Ivon`.
        num_examples: N, where the settings do not name it.
    """

    def __init__(self, parameters: list[nn.Parameter], method: Ivon, *, learning_rate: float, num_examples: int) -> None:
        self._method = method
        self._sample_size = method.effective_sample_size or float(num_examples)
        self._means: dict[nn.Parameter, Tensor] = {}  # during a step
        super().__init__(parameters, {"lr": learning_rate})
        for parameter in parameters:
            self.state[parameter] = {
                "hessian": torch.full_like(parameter, method.hessian),
                "momentum": torch.zeros_like(parameter),
                "step": 0,
            }

    def begin_step(self) -> None:
        """Put a draw of the weights in place of the mean."""
        self.close()
        with torch.no_grad():
            for parameter in self._parameters():
                self._means[parameter] = parameter.detach().clone()
                parameter.add_(torch.randn_like(parameter) * self.variance(parameter).sqrt())

    def end_backward(self) -> None:
        """Estimate the Hessian's diagonal from the gradient at the draw, and put the mean back in place."""
        for parameter, mean in self._means.items():
            noise = parameter - mean
            parameter.copy_(mean)
            if parameter.grad is None:
                continue
            state, beta, decay = self.state[parameter], self._method.beta2, self._method.weight_decay
            estimate = parameter.grad * noise / self.variance(parameter)
            hessian = state["hessian"]
            correction = (1 - beta) ** 2 * (hessian - estimate).square() / (2 * (hessian + decay))
            state["hessian"] = beta * hessian + (1 - beta) * estimate + correction
        self._means = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move the mean by the preconditioned running mean of the gradients."""
        beta, decay = self._method.beta1, self._method.weight_decay
        for group in self.param_groups:
            rate = group["lr"] * (self._method.hessian + decay)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] += 1
                state["momentum"].mul_(beta).add_(parameter.grad, alpha=1 - beta)
                unbiased = state["momentum"] / (1 - beta ** state["step"])
                parameter.sub_(rate * (unbiased + decay * parameter) / (state["hessian"] + decay))

    def variance(self, parameter: nn.Parameter) -> Tensor:
        """Return 1 / (N (hessian + weight_decay))."""
        return 1 / (self._sample_size * (self.state[parameter]["hessian"] + self._method.weight_decay))

    def close(self) -> None:
        """Put the mean back in place where a step was interrupted."""
        with torch.no_grad():
            for parameter, mean in self._means.items():
                parameter.copy_(mean)
        self._means = {}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
