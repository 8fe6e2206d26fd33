"""Tracing of a model's calls: which dimension of each tensor counts the rows of a batch.

The model runs on one row twice over and then on that row alone. Nothing is guessed from sizes: a first dimension of 512 may be 512 rows
or the 512 relative positions of DeBERTa. The rows are in the dimension that is 2 the first time and 1 the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from swag_trainer.prediction.packed.torch_internals import leaves_of, map_tensors, version_of

NO_TENSOR = -1
_PLAIN_VALUES = (type(None), bool, int, float, str, torch.dtype, torch.device)
# A block of a transformer is up to 50 calls; what positions are left out is decided in the last two.
_LAST_CALLS = 96


@dataclass(frozen=True)
class Call:
    """One call of a module, as one row and two rows showed it.

    Attributes:
        inputs: For each leaf of ``(args, kwargs)``, flattened: the dimension that counts the rows, None for a tensor without rows,
            NO_TENSOR for anything else.
        outputs: The same for what came back.
        size: Bytes of the largest tensor that came back for one row.
        understood: All that differed between one row and two were those dimensions, nothing but tensors and plain values went in and
            out, and no tensor that went in was written to.
        by_position: All tensors that went in and came out have the shape (rows, positions, width), with as many positions, 2 at least.
        begin: When it began: how many calls had begun or ended before.
        end: When it ended, by the same clock.
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    size: int
    understood: bool
    by_position: bool = False
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Trace:
    """How a model ran on one row.

    Attributes:
        calls: The calls of each module in their order, without modules that are called more often for two rows than for one.
        outputs: What the model returned.
        kept: Copies of what modules returned that were called once: of those that ended among the last calls of the forward, and of the
            largest ones before.
    """

    calls: Mapping[nn.Module, tuple[Call, ...]]
    outputs: Any
    kept: Mapping[nn.Module, Any] = field(default_factory=dict)


def trace_calls(model: nn.Module, batch: Mapping[str, Any], constants: Mapping[str, Any] | None = None) -> Trace:
    """Trace a model on the first row of a batch. Costs as much as a forward of three rows.

    Args:
        model: Any model, in evaluation mode. It gets hooks for the time of the call.
        batch: Tensors with the rows in their first dimension, and plain values.
        constants: What the model is given besides.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    constants = {name: value for name, value in batch.items() if name not in tensors} | dict(constants or {})
    row = {name: value[:1] for name, value in tensors.items()}
    two = _Recorder()
    two.run(model, {name: torch.cat([value, value]) for name, value in row.items()}, constants)
    one = _Recorder(_worth_keeping(two.seen))
    outputs = one.run(model, row, constants)
    calls = {
        module: tuple(_call(first, second) for first, second in zip(seen, two.seen[module], strict=True))
        for module, seen in one.seen.items()
        if len(seen) == len(two.seen.get(module, ()))
    }
    kept = {module: output for module, output in one.kept.items() if module in calls and calls[module][0].understood}
    return Trace(calls, outputs, kept)


@dataclass(frozen=True)
class _Seen:
    inputs: list[object]
    outputs: list[object]
    size: int
    written: bool
    begin: int
    end: int


class _Recorder:
    """What hooks on every module see of one forward."""

    def __init__(self, keep: set[nn.Module] | None = None) -> None:
        self.seen: dict[nn.Module, list[_Seen]] = {}
        self.kept: dict[nn.Module, Any] = {}
        self._keep = keep or set()
        self._open: list[tuple[int, list[int]]] = []
        self._clock = 0

    def run(self, model: nn.Module, batch: Mapping[str, Tensor], constants: Mapping[str, Any]) -> Any:
        # A dropout gives back what it got, here as in `fixed_modules`.
        modules = [module for module in model.modules() if not isinstance(module, (nn.Dropout, nn.Identity))]
        handles = [module.register_forward_pre_hook(self._before, with_kwargs=True) for module in modules]
        handles += [module.register_forward_hook(self._after, with_kwargs=True) for module in modules]
        try:
            return model(**batch, **constants)
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._open.append((self._clock, [version_of(leaf) for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]))
        self._clock += 1

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        leaves = leaves_of((args, kwargs))
        begin, versions = self._open.pop()
        written = versions != [version_of(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        results = leaves_of(output)
        size = max((leaf.nbytes for leaf in results if isinstance(leaf, Tensor)), default=0)
        signs = [_sign(leaf) for leaf in leaves], [_sign(leaf) for leaf in results]
        self.seen.setdefault(module, []).append(_Seen(*signs, size, written, begin, self._clock))
        self._clock += 1
        if module in self._keep:
            self.kept[module] = map_tensors(Tensor.clone, output)


def _worth_keeping(seen: Mapping[nn.Module, list[_Seen]]) -> set[nn.Module]:
    """Choose what a repetition of the end of a forward needs: outputs of late modules, and of the largest ones that had ended before."""
    once = sorted((made[0].begin, made[0].end, module) for module, made in seen.items() if len(made) == 1)
    late = max(call.end for made in seen.values() for call in made) - 2 * _LAST_CALLS
    kept, inside_until = set(), -1
    for begin, end, module in once:
        if end >= late:
            kept.add(module)
        elif begin > inside_until:
            kept.add(module)
            inside_until = end
    return kept


def _sign(leaf: object) -> object:
    """What is kept of a leaf: the shape of a tensor, a plain value, or a new object, which equals nothing, for anything else."""
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
    return Call(inputs, outputs, one.size, understood, by_position, one.begin, one.end)


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
