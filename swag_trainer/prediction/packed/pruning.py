"""Pruning of positions: what the logits do not depend on is not computed.

A classifier that looks at its first token (BERT) or its last one (Llama) throws the other positions of its last block away. Everything
there that treats each position separately (the feed-forward layers, norms, the projections after attention and of its queries) needs only
that one.

There is no list of architectures, and nothing is assumed: the positions that are left out come back as NaN. Whatever reads one of them
makes the logits NaN, on the first batch, where the modules are chosen, and on every later one, which is then computed in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from swag_trainer.prediction.packed.torch_internals import (
    flatten,
    leaves_of,
    map_tensors,
    replaced_forward,
    restore_forward,
    unflatten,
)
from swag_trainer.prediction.packed.tracing import Call, Trace

# Going back from the logits, a block is left where its keys, its values and what they come from cannot do without a position.
_MOST_REFUSALS = 3


class _NotByPosition(Exception):
    """A module's output at one position depends on another one."""


def prunable_modules(
    trace: Trace,
    predict: Callable[[], Tensor],
    expected: Tensor,
    *,
    whole: Sequence[nn.Module] = (),
    repeating: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[list[nn.Module], int]:
    """Find the modules that need to see one position only.

    Each is proved in a forward of the traced row, together with those that were found before: the module gives the same at that one
    position with NaN in place of the others, and so do the logits. All that ended before the first of these modules began is taken from
    the trace, so all these forwards together multiply about as much as one or two blocks.

    Args:
        trace: How the model ran.
        predict: Runs the model on the traced row; returns its logits. Forwards are replaced for the time of the call.
        expected: These logits, as traced.
        whole: Modules that are taken as they are or not at all, with what is inside them.
        repeating: What a module is called in that is called again in the same forward.

    Returns:
        The modules, the largest where one is made of nothing else, and the position: 0 for the first, -1 for the last.
    """
    return _Search(trace, predict, expected, whole, repeating).run()


class _Search:
    """The search for `prunable_modules`, back from the logits."""

    def __init__(
        self,
        trace: Trace,
        predict: Callable[[], Tensor],
        expected: Tensor,
        whole: Sequence[nn.Module],
        repeating: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._trace = trace
        self._repeating = repeating
        self._predict = predict
        self._expected = expected
        within = {child for module in whole for child in module.modules() if child is not module}
        half = max(call.end for made in trace.calls.values() for call in made) / 2
        seen = [
            module
            for module, made in trace.calls.items()
            if len(made) == 1
            and made[0].by_position
            and made[0].end > half  # what the first half of a forward gives is read everywhere
            and module not in within
            and not isinstance(module, (nn.Dropout, nn.Identity))
        ]
        inside = {module: [other for other in seen if self._contains(module, other)] for module in seen}
        self._leaves = [module for module in seen if not inside[module]]
        self._parts = {module: [part for part in parts if not inside[part]] for module, parts in inside.items() if parts}
        self._blocks = {leaf: module for module, parts in self._parts.items() if parts == inside[module] for leaf in parts}
        self._found: list[nn.Module] = []
        self._position: int | None = None

    def run(self) -> tuple[list[nn.Module], int]:
        decided: set[nn.Module] = set()  # leaves
        tried: set[nn.Module] = set()
        refusals = 0
        for leaf in reversed(self._leaves):  # the last ones first
            block = self._blocks.get(leaf)
            for module in (block, leaf):
                if module is None or module in tried or leaf in decided:
                    continue
                tried.add(module)
                if self._add(module):
                    decided.update(self._parts.get(module, [leaf]))
                elif module is leaf:
                    refusals += 1
            if refusals == _MOST_REFUSALS:
                break
        covered = {part for module in self._found for part in self._parts.get(module, [module])}
        for module in reversed(self._parts):  # parents before their children
            if module not in tried and all(part in covered for part in self._parts[module]):
                self._add(module)
        return self._found, self._position or 0

    def _add(self, module: nn.Module) -> bool:
        """Take a module in place of those inside it, if the logits are the same with one position of it."""
        others = [other for other in self._found if other is not module and not self._contains(module, other)]
        for position in (0, -1) if self._position is None else (self._position,):
            if self._works(module, others, position):
                self._found, self._position = [*others, module], position
                return True
        return False

    def _contains(self, module: nn.Module, other: nn.Module) -> bool:
        """Whether the one call of a module was made within that of another."""
        outer, inner = self._trace.calls[module][0], self._trace.calls[other][0]
        return outer.begin < inner.begin and inner.end < outer.end

    def _works(self, module: nn.Module, found: Sequence[nn.Module], position: int) -> bool:
        calls, kept = self._trace.calls, self._trace.kept
        begin = min(calls[other][0].begin for other in (module, *found))
        repeated = _largest({other: calls[other][0] for other in kept if calls[other][0].end < begin})
        before = [(other, replaced_forward(other)) for other in (module, *found, *repeated)]
        try:
            for other in repeated:
                other.forward = _repeated(kept[other])
            for other in found:
                other.forward = at_one_position(other.forward, position)
            module.forward = at_one_position(module.forward, position, prove=self._repeating, whole=kept.get(module))
            logits = self._predict()
        except _NotByPosition:
            return False
        finally:
            for other, forward in before:
                restore_forward(other, forward)
        return bool(torch.isfinite(logits).all()) and torch.allclose(logits, self._expected, rtol=1e-2, atol=1e-2)


def _largest(calls: Mapping[nn.Module, Call]) -> list[nn.Module]:
    """Leave out modules whose one call was within another one's."""
    result: list[nn.Module] = []
    inside_until = -1
    for module, call in sorted(calls.items(), key=lambda item: item[1].begin):
        if call.begin > inside_until:
            result.append(module)
            inside_until = call.end
    return result


def _repeated(output: Any) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return map_tensors(Tensor.clone, output)  # which the model may write to

    return forward


def at_one_position(
    forward: Callable[..., Any],
    position: int,
    *,
    prove: Callable[[], AbstractContextManager[None]] | None = None,
    whole: Any = None,
) -> Callable[..., Any]:
    """The forward to put in the place of a module's own: it computes one position, the others come back as NaN.

    Args:
        forward: The module's own. All tensors that go in and come out have the shape (rows, positions, width).
        position: 0 for the first, -1 for the last.
        prove: Raise unless that one position comes out the same with NaN in place of the others; the forward is repeated in this.
        whole: What the module returns, where that is known before.
    """

    def pruned(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = flatten((args, kwargs))
        lengths = {leaf.shape[1] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim == 3}
        if len(lengths) != 1 or not all(leaf.ndim == 3 for leaf in leaves if isinstance(leaf, Tensor)):
            return forward(*args, **kwargs)
        (length,) = lengths
        index = position % length

        def call(change: Callable[[Tensor], Tensor]) -> Any:
            given = [change(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            inner_args, inner_kwargs = unflatten(given, structure)
            return forward(*inner_args, **inner_kwargs)

        def widened(one: Tensor) -> Tensor:
            return _alone(one, index, length)

        if prove is not None:
            with prove():
                others_unknown = call(lambda leaf: _alone(leaf.narrow(1, index, 1), index, length))
            with prove():
                full = forward(*args, **kwargs) if whole is None else whole
        output = call(lambda leaf: leaf.narrow(1, index, 1).contiguous())
        if prove is not None:
            _check(output, full, others_unknown, index)
        return map_tensors(widened, output)

    return pruned


def _alone(one: Tensor, index: int, length: int) -> Tensor:
    """One position, shape (rows, 1, width), among others that are NaN: (rows, length, width)."""
    filled = one.new_full((one.shape[0], length, one.shape[2]), torch.nan)
    filled[:, index : index + 1] = one
    return filled


def _check(one: Any, whole: Any, others_unknown: Any, index: int) -> None:
    """Whether a module's output at one position is that of the whole input, and stays what it is without the others."""
    for short, full, unknown in zip(*(leaves_of(output) for output in (one, whole, others_unknown)), strict=True):
        expected = full.narrow(1, index, 1)
        tolerance = 1e-5 if full.dtype in (torch.float32, torch.float64) else 1e-2
        limit = tolerance * expected.abs().max()
        for other in (short, unknown.narrow(1, index, 1)):
            if not (other - expected).abs().max() <= limit:  # and not `>`, which NaN would pass
                raise _NotByPosition
