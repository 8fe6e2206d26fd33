"""Positions that nobody reads are not computed.

A classifier that looks at its first token (BERT) or its last one (Llama) throws the other positions of its last block away. Everything
there that treats each position by itself (the feed-forward layers, norms, the projections after attention and of its queries) need only
see that one.

No list of architectures, and nothing is taken on trust: the positions that are left out come back as NaN. Whatever reads one of them
makes the logits NaN, on the first batch, where the modules are chosen, and on every later one, where the batch is then answered in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from swag_trainer.prediction.packed.tracing import Call

# Going back from the logits, a block is left where its keys, its values and what they come from cannot do without a position.
_MOST_REFUSALS = 3


class _NotByPosition(Exception):
    """A module's answer for one position depends on another one."""


def prunable_modules(
    model: nn.Module,
    calls: Mapping[nn.Module, Sequence[Call]],
    answer: Callable[[], Tensor],
    expected: Tensor,
    *,
    whole: Sequence[nn.Module] = (),
) -> tuple[list[nn.Module], int]:
    """Find the modules that need to see one position only. Costs about ten forwards of one row.

    Args:
        model: The model, whose forwards are replaced for the time of the call.
        calls: What `watch` saw of it.
        answer: Lets the model answer the watched row; returns its logits.
        expected: These logits, as `watch` heard them.
        whole: Modules that are taken as they are or not at all, with what is inside them.

    Returns:
        The modules, the largest where one is made of nothing else, and the position: 0 for the first, -1 for the last.
    """
    within = {child for module in whole for child in module.modules() if child is not module}
    seen = [
        module
        for module, made in calls.items()
        if len(made) == 1 and made[0].by_position and module not in within and not isinstance(module, (nn.Dropout, nn.Identity))
    ]
    inside = {module: _inside(module, seen) for module in seen}
    found: list[nn.Module] = []
    position, refusals = 0, 0
    for leaf in reversed([module for module in seen if not inside[module]]):  # the last ones first
        for place in (position,) if found else (0, -1):
            if _works([*found, leaf], place, answer, expected):
                found, position = [*found, leaf], place
                break
        else:
            refusals += 1
            if refusals == _MOST_REFUSALS:
                break
    for module in reversed(seen):  # parents before their children
        parts = [part for part in inside[module] if not inside[part]]
        if parts and all(part in found for part in parts):
            together = [*(part for part in found if part not in parts), module]
            if _works(together, position, answer, expected):
                found = together
    return found, position


def _inside(module: nn.Module, seen: Sequence[nn.Module]) -> list[nn.Module]:
    descendants = set(module.modules()) - {module}
    return [other for other in seen if other in descendants]


def _works(modules: Sequence[nn.Module], position: int, answer: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether the model answers the same if these modules compute one position only."""
    before = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        for module in modules:
            module.forward = at_one_position(module.forward, position, prove=True)
        logits = answer()
    except _NotByPosition:
        return False
    finally:
        for module, forward in before:
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward
    return bool(torch.isfinite(logits).all()) and torch.allclose(logits, expected, rtol=1e-2, atol=1e-2)


def at_one_position(forward: Callable[..., Any], position: int, *, prove: bool = False) -> Callable[..., Any]:
    """The forward to put in the place of a module's own: it computes one position, the others come back as NaN.

    Args:
        forward: The module's own. All tensors that go in and come out have the shape (rows, positions, width).
        position: 0 for the first, -1 for the last.
        prove: Raise unless that one position comes out the same with NaN in place of the others.
    """

    def pruned(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        lengths = {leaf.shape[1] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim == 3}
        if len(lengths) != 1 or not all(leaf.ndim == 3 for leaf in leaves if isinstance(leaf, Tensor)):
            return forward(*args, **kwargs)
        (length,) = lengths
        index = position % length

        def call(change: Callable[[Tensor], Tensor]) -> Any:
            given = [change(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            inner_args, inner_kwargs = pytree.tree_unflatten(given, structure)
            return forward(*inner_args, **inner_kwargs)

        def widened(one: Tensor) -> Tensor:
            return _alone(one, index, length)

        output = call(lambda leaf: leaf.narrow(1, index, 1).contiguous())
        if prove:
            others_unknown = call(lambda leaf: _alone(leaf.narrow(1, index, 1), index, length))
            _check(output, forward(*args, **kwargs), others_unknown, index)
        return pytree.tree_map_only(Tensor, widened, output)

    return pruned


def _alone(one: Tensor, index: int, length: int) -> Tensor:
    """One position, shape (rows, 1, width), among others that are NaN: (rows, length, width)."""
    filled = one.new_full((one.shape[0], length, one.shape[2]), torch.nan)
    filled[:, index : index + 1] = one
    return filled


def _check(one: Any, whole: Any, others_unknown: Any, index: int) -> None:
    """Whether a module's output at one position is that of the whole input, and stays what it is without the others."""
    for short, full, unknown in zip(*(pytree.tree_leaves(output) for output in (one, whole, others_unknown)), strict=True):
        expected = full.narrow(1, index, 1)
        tolerance = 1e-5 if full.dtype in (torch.float32, torch.float64) else 1e-2
        limit = tolerance * expected.abs().max()
        for other in (short, unknown.narrow(1, index, 1)):
            if not (other - expected).abs().max() <= limit:  # and not `>`, which NaN would pass
                raise _NotByPosition
