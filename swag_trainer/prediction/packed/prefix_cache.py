"""Prefix cache: what is the same for every draw is computed once per row.

Until the first module whose weights are sampled is entered, nothing in a forward can differ between two draws: everything comes from the
inputs and from weights that are not sampled. With dropout, which differs between draws too, the same holds until the first module that
drops out. So the model first runs on the B rows alone, up to that module; the outputs of the largest
modules without sampled weights (embeddings, whole blocks, norms) are kept on the way. In the packed forward those modules then return
S copies of what was kept instead of computing it S times. Their order is that of the same program on the same inputs, and which
dimension to copy along stands in their trace. No list of architectures, and no tensor is taken for rows because of its size.

Beyond that point a module that is given such copies, the very tensor and not written to since, computes B rows too: the norm, key or
base projection that reads the input of the first adapted block.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from swag_trainer.prediction.dropout import DropoutMasks, PrefixDone
from swag_trainer.prediction.packed.sampled_modules import Packing, SampledModule
from swag_trainer.prediction.packed.torch_internals import flatten, leaves_of, map_tensors, unflatten, version_of
from swag_trainer.prediction.packed.tracing import NO_TENSOR, Call


class PrefixCache:
    """Computes once per row what does not depend on the draw.

    Args:
        packing: The state of the forward that is running.
        calls: The calls of each module, as traced.
    """

    def __init__(self, packing: Packing, calls: Mapping[nn.Module, Sequence[Call]]) -> None:
        self._packing = packing
        self._calls = calls
        self._kept: dict[tuple[nn.Module, int], Any] = {}
        self._counts: dict[nn.Module, int] = defaultdict(int)
        self._copies: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}

    def record(self, forward: Callable[[], Any], num_rows: int) -> None:
        """Run a forward of the B rows up to the first sampled weight and keep what the modules before it return."""
        self._kept.clear()
        self.restart()
        self._packing.mode, self._packing.num_rows = "record", num_rows
        try:
            forward()
        except PrefixDone:
            pass

    def restart(self) -> None:
        """Begin a forward: the next call of each module is its first."""
        self._counts.clear()
        self._copies.clear()

    def cached(self, module: nn.Module) -> Callable[..., Any]:
        """The forward to put in the place of that of a module without sampled weights."""
        plain, calls, packing = module.forward, self._calls[module], self._packing
        one_to_one = all(call.understood and call.inputs == (0,) and call.outputs == (0,) for call in calls)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if packing.mode == "plain":
                return plain(*args, **kwargs)
            index = self._counts[module]
            self._counts[module] += 1
            if packing.mode == "record":
                output = plain(*args, **kwargs)
                if index < len(calls) and _as_traced(output, calls[index], packing.num_rows):
                    # Cloned, as the model may write into what it got, here and again in the packed forward.
                    self._kept[module, index] = map_tensors(Tensor.clone, output)
                return output
            if (module, index) in self._kept:
                leaves, structure = flatten(self._kept[module, index])
                copies = [self._copy(leaf, dimension) for leaf, dimension in zip(leaves, calls[index].outputs, strict=True)]
                return unflatten(copies, structure)
            if one_to_one and len(args) == 1 and not kwargs and packing.num_draws > 1:
                rows = self._rows_behind(args[0])
                if rows is not None:
                    return self._copy(plain(rows), 0)
            return plain(*args, **kwargs)

        return forward

    def _copy(self, leaf: Any, dimension: int | None) -> Any:
        """S copies of a tensor along the dimension of the rows; always a new tensor, for the model to write to."""
        if dimension == NO_TENSOR:
            return leaf
        if dimension is None:
            return leaf.clone()
        copies = leaf.repeat(*(self._packing.num_draws if place == dimension else 1 for place in range(leaf.ndim)))
        if dimension == 0:
            self._copies[id(copies)] = (weakref.ref(copies), version_of(copies), leaf)
        return copies

    def _rows_behind(self, tensor: Any) -> Tensor | None:
        """The B rows that a tensor is S copies of; None if it is not known to be."""
        reference, version, rows = self._copies.get(id(tensor), (None, None, None))
        return rows if reference is not None and reference() is tensor and version_of(tensor) == version else None


def _as_traced(output: Any, call: Call, num_rows: int) -> bool:
    """Whether an output has its rows where the trace has them; a mask, say, may be left out for one batch and not for another."""
    leaves = leaves_of(output)
    if not call.understood or len(leaves) != len(call.outputs):
        return False
    return all(
        isinstance(leaf, Tensor) == (dimension != NO_TENSOR)
        and (dimension in (None, NO_TENSOR) or leaf.shape[dimension : dimension + 1] == (num_rows,))
        for leaf, dimension in zip(leaves, call.outputs, strict=True)
    )


def fixed_modules(
    model: nn.Module,
    sampled: Sequence[SampledModule],
    calls: Mapping[nn.Module, Sequence[Call]],
    masks: DropoutMasks | None = None,
) -> Iterator[nn.Module]:
    """The largest modules, among those that were called, without a sampled weight in them, and without dropout that ``masks`` know of."""
    own = {id(item.module.get_parameter(name)) for item in sampled for name in item.keys}

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(child, (nn.Dropout, nn.Identity)):  # which give back what they got
                continue
            drops_out = masks is not None and masks.inside(child)
            if child in calls and not drops_out and not any(id(parameter) in own for parameter in child.parameters()):
                yield child
            else:
                yield from walk(child)

    yield from dict.fromkeys(walk(model))
