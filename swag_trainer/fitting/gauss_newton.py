"""Kronecker factors of the Gauss-Newton matrix of linear layers, from the gradients of single examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swag_trainer.errors import SwagError

_MOST_DIRECTIONS = 16


class KroneckerFactors(NamedTuple):
    """Two factors whose Kronecker product approximates the Gauss-Newton matrix of a layer, summed over examples.

    Attributes:
        left: Over the outputs; its trace is 1. Shape (o, o), float32.
        right: Over the inputs, with one more for the bias; its trace is that of the matrix. Shape (i, i), float32.
    """

    left: Tensor
    right: Tensor


class _Sums:
    """What is summed up for one layer.

    With the gradient J (o, i) of one example along one direction of its logits the factors are sums of J J^T and J^T J. J itself, a sum
    over positions of g a^T, is not formed: J J^T = g^T (a a^T) g, where g (T, o) are gradients and a (T, i) inputs at T positions.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.has_bias = layer.bias is not None
        self.left = layer.weight.new_zeros(layer.out_features, layer.out_features, dtype=torch.float32)
        self.right = layer.weight.new_zeros(
            layer.in_features + self.has_bias, layer.in_features + self.has_bias, dtype=torch.float32
        )

    def add(self, inputs: Tensor, gradients: Sequence[Tensor]) -> None:
        """Add a batch: inputs (B, T, i), and a gradient (B, T, o) for each direction of the logits."""
        if self.has_bias:
            inputs = nn.functional.pad(inputs, (0, 1), value=1.0)
        of_inputs = inputs @ inputs.mT
        of_gradients = torch.zeros_like(of_inputs)
        for gradient in gradients:
            self.left += torch.einsum("bto,btp->op", gradient, of_inputs @ gradient)
            of_gradients += gradient @ gradient.mT
        self.right += torch.einsum("bti,btj->ij", inputs, of_gradients @ inputs)

    def factors(self) -> KroneckerFactors:
        trace = self.right.diagonal().sum()
        return KroneckerFactors(self.left / trace.clamp_min(torch.finfo(torch.float32).tiny), self.right)


def kronecker_factors(
    layers: Mapping[str, nn.Linear],
    batches: Iterable[Any],
    logits_of: Callable[[Any], Tensor],
    *,
    seed: int,
) -> dict[str, KroneckerFactors]:
    """Return the factors of each layer's Gauss-Newton matrix for the cross-entropy.

    The matrix of a layer is the sum over examples n and classes c of v v^T with v = vec(J_nc), the gradient of the logits along column c
    of a root of diag(p_n) - p_n p_n^T. Its nearest Kronecker products have factors like sum J J^T and sum J^T J (Van Loan & Pitsianis 1993;
    one step of the power iteration of Koroko et al. 2022, arXiv:2201.10285); divided by their trace they give the matrix's own. For one
    example with one position this is exact. Unlike KFAC's factors, which take the positions of a text for independent (Eschenhagen et al.
    2023, arXiv:2311.00636), these contain all products between positions, and padding, which has no gradient, adds nothing.

    Args:
        layers: Layers by name. One that runs several times for an example is taken as one with as many more positions.
        batches: What ``logits_of`` takes.
        logits_of: Runs the model and returns the logits (B, C) of B examples.
        seed: Of the directions. With up to 16 classes the expectation over the classes is exact and costs as many backward passes for each
            batch; with more it is estimated without bias from 16 random orthogonal directions, other ones for each example.

    Raises:
        SwagError: A layer did not run, or its inputs are not those of B examples one after the other.
    """
    sums = {name: _Sums(layer) for name, layer in layers.items()}
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        with torch.inference_mode(False), torch.enable_grad(), _recorded(layers) as calls:
            logits = logits_of(batch).float()
            idle = next((name for name in layers if not calls[name]), None)
            if idle is not None:
                raise SwagError(f"The layer {idle!r} did not run in a forward of the model, so it has no curvature.")
            names = [name for name in layers for _ in calls[name]]
            outputs = [output for name in layers for _, output in calls[name]]
            roots = _roots(logits.detach(), _MOST_DIRECTIONS, generator)
            gradients = [
                torch.autograd.grad(logits, outputs, root, retain_graph=True, materialize_grads=True) for root in roots
            ]
        for name, total in sums.items():
            places = [place for place, owner in enumerate(names) if owner == name]
            inputs = torch.cat([_by_example(inputs, len(logits), name) for inputs, _ in calls[name]], dim=1)
            along = [torch.cat([_by_example(each[place], len(logits), name) for place in places], dim=1) for each in gradients]
            total.add(inputs, along)
    return {name: total.factors() for name, total in sums.items()}


def _roots(logits: Tensor, most_directions: int, generator: torch.Generator) -> Tensor:
    """Return R with E[sum_k R_k R_k^T] = diag(p) - p p^T, for each example. Shape (K, B, C).

    With Z Z^T = I the root is diag(sqrt(p)) Z - p (sqrt(p)^T Z).
    """
    examples, classes = logits.shape
    count = min(classes, most_directions)
    noise = torch.randn(examples, classes, count, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(noise).Q.to(logits) * (classes / count) ** 0.5
    probabilities = logits.softmax(-1)
    scaled = probabilities.sqrt()[..., None] * directions
    return (scaled - probabilities[..., None] * scaled.sum(1, keepdim=True)).permute(2, 0, 1)


def _by_example(tensor: Tensor, examples: int, name: str) -> Tensor:
    """Return inputs or gradients of a layer by example and position. Of shape (B * m, ..., i), shape (B, T, i)."""
    if len(tensor) % examples:
        raise SwagError(
            f"The layer {name!r} ran on a tensor of shape {tuple(tensor.shape)} for {examples} examples: which position is whose cannot be "
            "determined."
        )
    return tensor.detach().float().reshape(examples, -1, tensor.shape[-1])


@contextmanager
def _recorded(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Record input and output of every call of the layers, by name."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def keep(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[name].append((inputs[0], output if output.requires_grad else output.requires_grad_()))

    handles = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: keep(name, inputs, output))
        for name, layer in layers.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
