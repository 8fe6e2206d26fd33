"""The processes of a launched run answer a data set together: who takes which batch, and how all get all answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from swag_trainer.errors import SwagError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes that predict together; one by default.

    Everything but `share` is a collective: each process calls it, in the same order. Whatever fails in one of them before they meet is
    raised in all of them: a process that waits for another one that has gone would wait for ever.

    Attributes:
        index: The number of this process, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_run(cls) -> Processes:
        """Those that ``torchrun`` or ``accelerate launch`` started, which are connected if nobody has done so yet."""
        if not dist.is_available():
            return cls()
        if (
            not dist.is_initialized()
            and int(os.environ.get("LOCAL_RANK", -1)) >= 0
            and int(os.environ.get("WORLD_SIZE", 1)) > 1
        ):
            # As accelerate does it, and only where processes were launched: this settles for a process's whole life what accelerate
            # computes on. Without a GPU it has to be told so; by itself it takes each process for the only one (1.15, state.py).
            PartialState(cpu=not torch.accelerator.is_available())
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def share(self, costs: Sequence[int]) -> list[int]:
        """Return the numbers of the batches that this process answers: the dearest first, each to whoever has least to do so far.

        Args:
            costs: What each batch costs, in any unit; the same list in every process.
        """
        loads, mine = [0] * self.count, []
        for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
            process = loads.index(min(loads))
            loads[process] += costs[number]
            if process == self.index:
                mine.append(number)
        return mine

    def exchange(self, value_of: Callable[[], Value]) -> list[Value]:
        """Return what ``value_of`` gives in each process, in their order, to every process.

        Raises:
            Exception: The one that ``value_of`` raised here.
            SwagError: It raised one in another process.
        """
        if self.count == 1:
            return [value_of()]
        value, failure = None, None
        try:
            value = value_of()
        except Exception as problem:
            failure = problem
        told: list[Any] = [None] * self.count
        dist.all_gather_object(told, (value, None if failure is None else f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        for index, (_, text) in enumerate(told):
            if text is not None:
                raise SwagError(f"Process {index} of {self.count} failed while all were answering a data set together. {text}")
        return [value for value, _ in told]

    def alike(self, value_of: Callable[[], Value], digests_of: Callable[[Value], Mapping[str, str]]) -> Value:
        """Return what ``value_of`` gives here, once every process has one and they have been found to be equal.

        Args:
            value_of: Gives the value.
            digests_of: Gives a digest for each of its parts, by a name that people know the part by.

        Raises:
            Exception: As `exchange`.
            SwagError: The digests differ.
        """
        if self.count == 1:
            return value_of()
        kept: list[Value] = []

        def digests() -> Mapping[str, str]:
            kept.append(value_of())
            return digests_of(kept[0])

        first, *others = self.exchange(digests)
        for index, other in enumerate(others, start=1):
            different = next((part for part in first if first[part] != other[part]), None)
            if different is not None:
                raise SwagError(
                    f"The processes answer a data set together, but {different} of process {index} are not those of process 0. Call "
                    "predict() in every process with the whole data set, and MonteCarloPredictor with the same posterior and settings; "
                    "or pass across_processes=False to it, and each process answers by itself what it was given."
                )
        return kept[0]


def digest(*values: Any) -> str:
    """A digest of tensors, numbers and texts, in lists and mappings."""
    state = hashlib.sha256()
    for value in values:
        _add(state, value)
    return state.hexdigest()


def _add(state: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        value = [item for name in sorted(value) for item in (name, value[name])]
    if isinstance(value, (list, tuple)) and not all(isinstance(item, (int, float)) for item in value):
        state.update(f"list {len(value)}".encode())
        for item in value:
            _add(state, item)
        return
    # A tensor's row, a list and an array of the same numbers are the same row, but not the same bytes: by way of float64.
    array = np.asarray(value.detach().float().cpu() if isinstance(value, Tensor) else value)
    array = array.astype(np.float64) if array.dtype.kind in "biuf" else array
    state.update(f"{array.dtype} {array.shape}".encode())
    state.update(repr(value).encode() if array.dtype.kind == "O" else array.tobytes())
