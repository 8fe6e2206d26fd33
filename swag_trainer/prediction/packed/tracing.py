"""Which tensors carry the rows of a batch: seen by letting the model answer one row, then the same row twice.

Nothing is guessed from sizes: a first dimension of 512 may be 512 rows or the 512 relative positions of DeBERTa. The rows are in the
dimension that is 1 the first time and 2 the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

NO_TENSOR = -1
_PLAIN_VALUES = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class Call:
    """One call of a module, as one row and two rows showed it.

    Attributes:
        inputs: For each leaf of ``(args, kwargs)``, in the order of `torch.utils._pytree`: the dimension that counts the rows, None
            for a tensor without rows, NO_TENSOR for anything else.
        outputs: The same for what came back.
        size: Bytes of the largest tensor that came back for one row.
        understood: All that differed between one row and two were those dimensions, nothing but tensors and plain values went in and
            out, and no tensor that went in was written to.
        by_position: All tensors that went in and came out have the shape (rows, positions, width), with as many positions, 2 at least.
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    size: int
    understood: bool
    by_position: bool = False


def watch(
    model: nn.Module, batch: Mapping[str, Tensor], constants: Mapping[str, Any] | None = None
) -> tuple[dict[nn.Module, tuple[Call, ...]], Any]:
    """Watch a model answer the first row of a batch.

    Args:
        model: Any model, in evaluation mode. It gets hooks for the time of the call.
        batch: Tensors with the rows in their first dimension.
        constants: What the model is given besides.

    Returns:
        The calls of each module in their order, without modules that are called more often for two rows than for one; and what the
        model said about the one row.
    """
    constants = constants or {}
    one, output = _trace(model, {name: value[:1] for name, value in batch.items()}, constants)
    two, _ = _trace(model, {name: torch.cat([value[:1], value[:1]]) for name, value in batch.items()}, constants)
    calls = {
        module: tuple(_call(first, second) for first, second in zip(seen, two[module], strict=True))
        for module, seen in one.items()
        if len(seen) == len(two.get(module, ()))
    }
    return calls, output


@dataclass(frozen=True)
class _Seen:
    inputs: list[object]
    outputs: list[object]
    size: int
    written: bool


def _trace(
    model: nn.Module, batch: Mapping[str, Tensor], constants: Mapping[str, Any]
) -> tuple[dict[nn.Module, list[_Seen]], Any]:
    seen: dict[nn.Module, list[_Seen]] = {}
    versions: list[list[int]] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        versions.append([leaf._version for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        leaves = pytree.tree_leaves((args, kwargs))
        written = versions.pop() != [leaf._version for leaf in leaves if isinstance(leaf, Tensor)]
        results = pytree.tree_leaves(output)
        size = max((leaf.nbytes for leaf in results if isinstance(leaf, Tensor)), default=0)
        seen.setdefault(module, []).append(
            _Seen([_sign(leaf) for leaf in leaves], [_sign(leaf) for leaf in results], size, written)
        )

    modules = list(model.modules())
    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(after, with_kwargs=True) for module in modules]
    try:
        return seen, model(**batch, **constants)
    finally:
        for handle in handles:
            handle.remove()


def _sign(leaf: object) -> object:
    """What is kept of a leaf: the shape of a tensor, a plain value, or a fresh object, which equals nothing, for anything else."""
    if isinstance(leaf, Tensor):
        return leaf.shape
    return leaf if isinstance(leaf, _PLAIN_VALUES) else object()


def _call(one: _Seen, two: _Seen) -> Call:
    inputs, inputs_understood = _row_dimensions(one.inputs, two.inputs)
    outputs, outputs_understood = _row_dimensions(one.outputs, two.outputs)
    understood = inputs_understood and outputs_understood and not one.written
    shapes = [shape for shape in (*one.inputs, *one.outputs) if isinstance(shape, torch.Size)]
    by_position = (
        understood
        and {len(shape) for shape in shapes} == {3}
        and {*inputs, *outputs} <= {0, NO_TENSOR}
        and len({shape[1] for shape in shapes}) == 1
        and shapes[0][1] > 1
    )
    return Call(inputs, outputs, one.size, understood, by_position)


def _row_dimensions(one: list[object], two: list[object]) -> tuple[tuple[int | None, ...], bool]:
    if len(one) != len(two):
        return (), False
    dimensions: list[int | None] = []
    understood = True
    for first, second in zip(one, two, strict=True):
        grown: list[int] = []
        if first != second:
            if isinstance(first, torch.Size) and isinstance(second, torch.Size) and len(first) == len(second):
                grown = [index for index in range(len(first)) if first[index] != second[index]]
            understood = understood and len(grown) == 1 and (first[grown[0]], second[grown[0]]) == (1, 2)
        without_rows = None if isinstance(first, torch.Size) else NO_TENSOR
        dimensions.append(grown[0] if len(grown) == 1 else without_rows)
    return tuple(dimensions), understood
