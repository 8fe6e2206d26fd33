"""Two processes that tell each other things; see test_processes.py."""

import torch
import torch.distributed as dist
from torchrun import work

from swag_trainer import distributed as processes


def everything(folder, setup):
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    sent = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    received = {
        "matrix": processes.broadcast_tensor(sent if first else None, shape=(7, 5)),
        "view": processes.broadcast_tensor(sent[:, 1] if first else None, shape=(7,)),  # not contiguous
        "no rows": processes.broadcast_tensor(sent[:0] if first else None, shape=(0, 5)),
        "halves": processes.broadcast_tensor(sent.bfloat16() if first else None, shape=(7, 5)),
        "numbers": processes.gather_numbers(-(2**62) + dist.get_rank()),
        "document": processes.broadcast_document(setup["document"] if first else "anything else"),
        "nothing": processes.broadcast_document(None if first else [1]),
        "count": processes.count_processes(),
        "is_first": processes.is_first(),
    }
    received["own"] = torch.equal(sent, torch.randn(7, 5, generator=torch.Generator().manual_seed(3)))
    return received


work({"everything": everything})
