"""Names of torch that are not public: all that the packed forward uses of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils import _pytree

flatten = _pytree.tree_flatten
unflatten = _pytree.tree_unflatten
leaves_of = _pytree.tree_leaves


def map_tensors(change: Callable[[Tensor], Tensor], values: object) -> object:
    """Return nested values with a function applied to each tensor in them."""
    return _pytree.tree_map_only(Tensor, change, values)


def version_of(tensor: Tensor) -> int:
    """Return a number that grows whenever the tensor is written to. Tensors of inference mode have none."""
    return tensor._version


def hooks_of(module: nn.Module) -> list[Callable]:
    """Return the hooks that run before and after a module's forward."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def replaced_forward(module: nn.Module) -> Callable | None:
    """Return the forward that was put into this one module; None where it runs that of its class."""
    return module.__dict__.get("forward")


def restore_forward(module: nn.Module, forward: Callable | None) -> None:
    """Put back what `replaced_forward` returned."""
    if forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = forward


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the dictionary in which a module keeps its own parameters, to write to."""
    return module._parameters


def has_linear_pointwise() -> bool:
    """Can this build of torch run oneDNN's product on its own?"""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear_pointwise(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by oneDNN: ``rows @ weight.T + bias``. Shapes (N, I), (O, I), (O,) -> (N, O), float32, on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
