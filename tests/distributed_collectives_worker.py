"""Collectives in two processes; see test_distributed_collectives.py."""

import torch
import torch.distributed as dist
from torchrun import work

from swag_trainer import distributed


def everything(folder, setup):
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    sent = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    received = {
        "matrix": distributed.broadcast_tensor(sent if first else None, shape=(7, 5)),
        "view": distributed.broadcast_tensor(sent[:, 1] if first else None, shape=(7,)),  # not contiguous
        "no rows": distributed.broadcast_tensor(sent[:0] if first else None, shape=(0, 5)),
        "halves": distributed.broadcast_tensor(sent.bfloat16() if first else None, shape=(7, 5)),
        "numbers": distributed.gather_numbers(-(2**62) + dist.get_rank()),
        "document": distributed.broadcast_document(setup["document"] if first else "anything else"),
        "nothing": distributed.broadcast_document(None if first else [1]),
        "count": distributed.count_processes(),
        "is_first": distributed.is_first(),
    }
    received["gathered"] = distributed.Processes.of_this_run().all_gather(lambda: [dist.get_rank(), "text"])
    received["own"] = torch.equal(sent, torch.randn(7, 5, generator=torch.Generator().manual_seed(3)))
    return received


work({"everything": everything})
