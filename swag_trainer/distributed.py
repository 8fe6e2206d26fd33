"""Collectives over the processes of one run: accelerate's own, for statistics, predictions and their checks.

`Processes` is the group that predicts together; the functions below it serve the collection of a posterior. All but `count_processes`,
`is_first`, `digest` and `Processes.partition` are collectives: every process calls them, in the same order. In a run of one process
nothing is sent and nothing of accelerate is set up.
"""

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
from accelerate.utils import broadcast, broadcast_object_list, gather, gather_object
from torch import Tensor

from swag_trainer.errors import SwagError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """A group of processes that work on one data set; default: this one alone.

    A failure in one process before they meet is raised in all of them, as a process that waits for one that has ended never returns.

    Attributes:
        index: The number of this process, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_run(cls) -> Processes:
        """Return those that ``torchrun`` or ``accelerate launch`` started, and connect them if they are not connected yet."""
        if not dist.is_available():
            return cls()
        if (
            not dist.is_initialized()
            and int(os.environ.get("LOCAL_RANK", -1)) >= 0
            and int(os.environ.get("WORLD_SIZE", 1)) > 1
        ):
            # Only where processes were launched: this settles for a process's whole life what accelerate computes on.
            _state()
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def partition(self, costs: Sequence[int]) -> list[int]:
        """Return the numbers of the batches for this process: greedily, the most expensive first, each to the least loaded process.

        Args:
            costs: The cost of each batch, in any unit; the same list in every process.
        """
        loads, mine = [0] * self.count, []
        for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
            process = loads.index(min(loads))
            loads[process] += costs[number]
            if process == self.index:
                mine.append(number)
        return mine

    def all_gather(self, value_of: Callable[[], Value]) -> list[Value]:
        """Return the values of ``value_of`` in all processes, in their order, to every process.

        Raises:
            Exception: The one that ``value_of`` raised here.
            SwagError: It raised one in another process.
        """
        if self.count == 1:
            return [value_of()]
        _state()
        value, failure = None, None
        try:
            value = value_of()
        except Exception as problem:  # raised again below, once the other processes have been notified
            failure = problem
        gathered = gather_object([(value, None if failure is None else f"{type(failure).__name__}: {failure}")])
        if failure is not None:
            raise failure
        for index, (_, message) in enumerate(gathered):
            if message is not None:
                raise SwagError(f"Process {index} of {self.count} failed while all were working on one data set. {message}")
        return [value for value, _ in gathered]

    def assert_identical(
        self, value_of: Callable[[], Value], digests_of: Callable[[Value], Mapping[str, str]], *, advice: str
    ) -> Value:
        """Return the value of ``value_of`` here, after a check that the values of all processes are equal.

        Args:
            value_of: Gives the value.
            digests_of: Gives a digest for each part of a value, by the part's name for an error message.
            advice: What to do about a difference; the last sentence of the error.

        Raises:
            Exception: As `all_gather`.
            SwagError: The digests differ.
        """
        if self.count == 1:
            return value_of()
        kept: list[Value] = []

        def digests() -> Mapping[str, str]:
            kept.append(value_of())
            return digests_of(kept[0])

        first, *others = self.all_gather(digests)
        for index, other in enumerate(others, start=1):
            different = next((part for part in first if first[part] != other[part]), None)
            if different is not None:
                raise SwagError(
                    f"The processes work on one data set together, but {different} of process {index} are not those of process 0. "
                    f"{advice}"
                )
        return kept[0]


def count_processes() -> int:
    """Return how many processes are connected."""
    return dist.get_world_size() if _is_distributed() else 1


def is_first() -> bool:
    """Is this the process that keeps the statistics?"""
    return not _is_distributed() or dist.get_rank() == 0


def gather_numbers(number: int) -> list[int]:
    """Return the whole number of every process, in their order, to every process."""
    if not _is_distributed():
        return [number]
    return gather(torch.tensor([number], dtype=torch.int64, device=_state().device)).tolist()


def broadcast_tensor(tensor: Tensor | None, *, shape: tuple[int, ...]) -> Tensor:
    """Return the first process's float32 tensor to every process, on the CPU; the others pass None."""
    if not _is_distributed():
        return tensor.cpu()
    device = _state().device
    sent = torch.empty(shape, device=device) if tensor is None else tensor.to(device, torch.float32).contiguous()
    return broadcast(sent).cpu()


def broadcast_document(document: Any) -> Any:
    """Return the first process's JSON value to every process; the other processes' values do not matter."""
    if not _is_distributed():
        return document
    _state()
    return broadcast_object_list([document if is_first() else None])[0]


def digest(*values: Any) -> str:
    """Return a SHA-256 of tensors, numbers and texts, in lists and mappings; equal numbers count as equal in whatever container."""
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


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _state() -> PartialState:
    """Return accelerate's view of the processes, which its collectives go by.

    Raises:
        SwagError: accelerate takes this process for the only one although the processes are connected.
    """
    # Without cpu=True accelerate takes each process of a machine that has no accelerator for the only one (1.15, state.py).
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.num_processes != dist.get_world_size():
        raise SwagError(
            f"torch.distributed connects {dist.get_world_size()} processes, accelerate counts {state.num_processes}: the environment "
            "variables of a launcher were missing. Start the processes with torchrun or accelerate launch."
        )
    return state
