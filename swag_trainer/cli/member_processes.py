"""Processes of one launch that work apart: each trains members of a mixture, and the first waits for the others."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from swag_trainer.collection.clients import LAUNCHED
from swag_trainer.errors import SwagError

Item = TypeVar("Item")
_POLL_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class MemberProcesses:
    """The processes that ``torchrun`` or ``accelerate launch`` started; default: this one alone.

    Attributes:
        index: The number of this process, from 0.
        count: How many there are.
        store: What they exchange short texts through; None for a process alone.
    """

    index: int = 0
    count: int = 1
    store: dist.Store | None = None

    def own(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of this process: every ``count``-th."""
        return list(items[self.index :: self.count])

    @contextlib.contextmanager
    def announced(self, stage: str) -> Iterator[None]:
        """Let the other processes know how the ``with`` block ended; see `wait_for`."""
        try:
            yield
        except BaseException as error:
            self._announce(stage, f"{type(error).__name__}: {error}")
            raise
        self._announce(stage, "")

    def wait_for(self, stage: str, processes: Sequence[int]) -> None:
        """Wait until other processes have ended a stage.

        Raises:
            SwagError: One of them failed in it.
        """
        for process in processes:
            if self.store is None or process == self.index:
                continue
            key = f"{stage} {process}"
            while not self.store.check([key]):
                time.sleep(_POLL_SECONDS)  # not in the store's own wait, which Ctrl-C does not end
            if problem := self.store.get(key).decode():
                raise SwagError(f"Process {process} of {self.count} failed. {problem}")

    def _announce(self, stage: str, problem: str) -> None:
        if self.store is None:
            return
        try:
            self.store.set(f"{stage} {self.index}", problem)
        except RuntimeError as error:  # of torch.distributed
            raise SwagError(f"Process {self.index} of {self.count} has lost the others: {error}") from error


@contextlib.contextmanager
def working_apart() -> Iterator[MemberProcesses]:
    """Connect the processes of this launch, and let each Trainer take its process for the only one, for the length of a ``with`` block.

    The environment loses what Trainers find each other by. Where there are GPUs, each process sees one.

    Raises:
        SwagError: The others did not come.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield MemberProcesses()
        return
    index = int(os.environ["RANK"])
    try:
        store, _, _ = next(dist.rendezvous("env://", index, count))
    except (RuntimeError, ValueError) as error:  # of torch.distributed
        raise SwagError(f"Process {index} of {count} did not meet the others: {error}") from error
    before = dict(os.environ)
    try:
        local = int(os.environ.get("LOCAL_RANK", index))
        for name in LAUNCHED:
            os.environ.pop(name, None)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
        if visible != [""]:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[local % len(visible)]
        yield MemberProcesses(index, count, store)
    finally:
        os.environ |= before
        if "CUDA_VISIBLE_DEVICES" not in before:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
