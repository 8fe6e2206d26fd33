"""Tensors that a private copy shares with its model, quantised layers included: all but those that will be written.

Plain parameters and buffers are shared as they are, and so are torchao's. Layers of bitsandbytes need more: their parameters ignore
the memo of ``copy.deepcopy`` and copy the weights, their scales lie in objects beside the parameters, and a forward moves or repacks both
in place. An 8-bit layer does so in its first forward, a 4-bit one in its first without gradients in evaluation mode on a CPU with
AVX512-BF16, after which it cannot train. Seen in bitsandbytes 0.50, ``nn/modules.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


def shared_tensors(model: nn.Module, own: Collection[int]) -> dict[int, object]:
    """Return a memo for ``copy.deepcopy(model, memo)`` with which the copy shares every tensor except the parameters in ``own``.

    In a layer of bitsandbytes the copy gets parameter and scale objects of its own, on the same memory, so that its forwards change
    nothing in the model. Where a forward repacks 4-bit weights, the copy then holds one repacked set, for all its draws.

    Args:
        model: What will be copied.
        own: The ``id`` of each parameter that the copy must have for itself.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        present = [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]
        tensors = [tensor for tensor in present if id(tensor) not in own]
        if not any(_is_bitsandbytes(tensor) for tensor in tensors):
            memo.update((id(tensor), tensor) for tensor in tensors)
            continue
        attributes = [value for holder in (module, *tensors) for value in vars(holder).values()]
        scales = [value for value in attributes if _is_bitsandbytes(value) and not isinstance(value, (Tensor, nn.Module))]
        memo.update((id(value), copy.copy(value)) for value in scales)
        memo.update((id(tensor), _on_the_same_memory(tensor, memo)) for tensor in tensors)
    return memo


def _is_bitsandbytes(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "bitsandbytes"


def _on_the_same_memory(tensor: Tensor, memo: Mapping[int, object]) -> Tensor:
    twin = torch.Tensor._make_subclass(type(tensor), tensor.data, tensor.requires_grad)
    for name, value in vars(tensor).items():
        setattr(twin, name, memo.get(id(value), value))
    return twin
