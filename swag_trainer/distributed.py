"""What the processes of a distributed run tell each other: a checksum at every collection, the statistics at the end.

Everything here is a collective: all processes call it, in the same order. In a run of one process nothing is sent.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def count_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _is_distributed() else 1


def is_first() -> bool:
    """Is this the process that keeps the statistics?"""
    return not _is_distributed() or dist.get_rank() == 0


def gather_numbers(number: int) -> list[int]:
    """Return the number of every process, in their order, to every process."""
    if not _is_distributed():
        return [number]
    mine = torch.tensor([number], dtype=torch.int64, device=_device())
    numbers = [torch.empty_like(mine) for _ in range(count_processes())]
    dist.all_gather(numbers, mine)
    return [int(other) for other in numbers]


def broadcast_tensor(tensor: Tensor | None, *, shape: tuple[int, ...]) -> Tensor:
    """Return the first process's float32 tensor to every process, on the CPU; the others pass None."""
    if not _is_distributed():
        return tensor.cpu()
    sent = torch.empty(shape, device=_device()) if tensor is None else tensor.to(_device(), torch.float32).contiguous()
    dist.broadcast(sent, src=0)
    return sent.cpu()


def broadcast_document(document: Any) -> Any:
    """Return the first process's JSON value to every process; what the others pass does not matter."""
    if not _is_distributed():
        return document
    text = json.dumps(document).encode() if is_first() else b""
    (size,) = gather_numbers(len(text))[:1]
    sent = torch.zeros(size, dtype=torch.uint8, device=_device())
    if is_first():
        sent.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(sent, src=0)
    return json.loads(bytes(sent.cpu().tolist()))


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    """Where tensors must lie to be sent: NCCL wants the GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
