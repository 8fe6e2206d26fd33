"""Batched forwards of modules under S weight draws at once.

The rows of a packed batch lie draw by draw: S blocks of B rows, block s for draw s. Base weights see S * B rows; only sampled weights are
multiplied block by block, from views of the one (S, P) matrix of draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from swag_trainer.prediction.packed.sampled_modules import NotPacked, Packing, SampledModule
from swag_trainer.prediction.packed.torch_internals import flatten, hooks_of, unflatten
from swag_trainer.prediction.packed.tracing import NO_TENSOR, Call

_NEW_OUTPUT = ("Linear", "Conv1D")  # base layers whose output is a new tensor, which may be added to in place


def packed_forward(sampled: SampledModule, packing: Packing, calls: Sequence[Call]) -> Callable[..., Any]:
    """The forward to put in the place of a module's own.

    Args:
        sampled: The module.
        packing: The state of the forward that is running.
        calls: Its calls, as traced.
    """
    if sampled.kind == "lora":
        return _packed_lora(sampled, packing)
    if sampled.kind == "linear":
        return _packed_linear(sampled, packing)
    return _packed_module(sampled, packing, calls)


def _packed_lora(sampled: SampledModule, packing: Packing) -> Callable[..., Tensor]:
    layer: Any = sampled.module
    plain, base, dropout = layer.forward, layer.base_layer, layer.lora_dropout[sampled.adapter_name]
    scaling = float(layer.scaling[sampled.adapter_name])
    name_a, name_b = (f"lora_{letter}.{sampled.adapter_name}.weight" for letter in "AB")
    in_place = type(base).__name__ in _NEW_OUTPUT and not hooks_of(base)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if packing.mode == "plain":
            return plain(x, *args, **kwargs)
        packing.enter(x)
        result = base(x, *args, **kwargs)
        a, b = sampled.stacked(packing, name_a), sampled.stacked(packing, name_b)
        # In the draws' float32 whatever the base is: in bfloat16 the difference between two draws would drown.
        with _no_autocast(x):
            # The mask of x, which all its rows share, is that of the weights they are multiplied by, which are fewer.
            factors = None if packing.masks is None else packing.masks.of_features(dropout, a)
            a = a if factors is None else a * factors[:, None]
            low = torch.bmm(x.reshape(packing.num_draws, -1, x.shape[-1]).to(a.dtype), a.mT)
            if in_place and result.dtype == a.dtype and result.is_contiguous():
                result.view(packing.num_draws, -1, result.shape[-1]).baddbmm_(low, b.mT, alpha=scaling)
                return result
            update = torch.bmm(low, b.mT).mul_(scaling)
            return (result + update.view(result.shape)).to(result.dtype)

    return forward


def _packed_linear(sampled: SampledModule, packing: Packing) -> Callable[..., Tensor]:
    module: Any = sampled.module
    plain, has_bias = module.forward, module.bias is not None

    def forward(x: Tensor) -> Tensor:
        if packing.mode == "plain":
            return plain(x)
        packing.enter(x)
        weight = sampled.stacked(packing, "weight")
        with _no_autocast(x):
            rows = x.reshape(packing.num_draws, -1, x.shape[-1]).to(weight.dtype)
            if has_bias:
                result = torch.baddbmm(sampled.stacked(packing, "bias").to(weight.dtype)[:, None], rows, weight.mT)
            else:
                result = torch.bmm(rows, weight.mT)
        return result.view(*x.shape[:-1], -1).to(x.dtype)

    return forward


class _Plain(nn.Module):
    """A module under its own forward, for ``functional_call`` once that forward has been replaced."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._forward = module.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)


def _packed_module(sampled: SampledModule, packing: Packing, calls: Sequence[Call]) -> Callable[..., Any]:
    module, plain, skeleton = sampled.module, sampled.module.forward, _Plain(sampled.module)
    dtypes = {name: sampled.module.get_parameter(name).dtype for name in sampled.keys}
    understood = {
        (len(call.inputs), *(place for place, dimension in enumerate(call.inputs) if dimension != NO_TENSOR)): call.inputs
        for call in calls
    }

    def forward(*args: Any, **kwargs: Any) -> Any:
        if packing.mode == "plain":
            return plain(*args, **kwargs)
        leaves, structure = flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        dimensions = understood.get((len(leaves), *places))
        if dimensions is None:
            raise NotPacked(f"{type(module).__name__} was called with other arguments than on the first batch")
        for leaf, dimension in zip(leaves, dimensions, strict=True):
            if dimension == 0:
                packing.enter(leaf)
        split = [
            leaves[place].unflatten(0, (packing.num_draws, -1)) if dimensions[place] == 0 else leaves[place] for place in places
        ]
        stacked = {f"module.{name}": packing.weights[key].to(dtypes[name]) for name, key in sampled.keys.items()}
        outside: list[Any] = []  # leaves and structure of the output, which vmap takes only if all leaves are tensors

        def run(draw: Tensor, weights: dict[str, Tensor], *tensors: Tensor) -> list[Tensor]:
            given = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = tensor
            inner_args, inner_kwargs = unflatten(given, structure)
            with packing.within(draw):
                outside[:] = flatten(functional_call(skeleton, weights, inner_args, inner_kwargs))
            return [leaf for leaf in outside[0] if isinstance(leaf, Tensor)]

        numbers = torch.arange(packing.num_draws, device=leaves[places[0]].device)
        in_dims = (0, 0, *(0 if dimensions[place] == 0 else None for place in places))
        results = iter(vmap(run, in_dims=in_dims)(numbers, stacked, *split))
        together = [next(results).flatten(0, 1) if isinstance(leaf, Tensor) else leaf for leaf in outside[0]]
        return unflatten(together, outside[1])

    return forward


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
