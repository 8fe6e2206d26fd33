"""Clients: a group of processes that exchange tensors while each of them trains alone."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from swag_trainer.errors import SwagError

# The environment variables by which each Trainer finds the other processes of a launch.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


class Clients:
    """A gloo group of its own, which is not the default group: the Trainer of each process goes on as if it were alone.

    Args:
        client: The number of this process, from 0.
        num_clients: How many there are, at least 2.
        rendezvous: "tcp://host:port", where client 0 listens, or the path of a file that all clients see and that does not exist yet.
        timeout: How long to wait for the others, in seconds.

    Raises:
        SwagError: The numbers do not fit, or the others did not come.
    """

    def __init__(self, client: int, num_clients: int, rendezvous: str, *, timeout: float = 600.0) -> None:
        if num_clients < 2 or not 0 <= client < num_clients:
            raise SwagError(f"Clients are numbered from 0 to num_clients - 1, got client={client} of {num_clients}.")
        if launched := [name for name in LAUNCHED if name in os.environ]:
            raise SwagError(
                f"The environment has {launched[0]}, by which each Trainer would average gradients with the other processes instead of "
                "training alone. Start the clients without torchrun or accelerate launch."
            )
        self.client, self.num_clients, self._timeout = client, num_clients, timedelta(seconds=timeout)
        try:
            self._group = dist.ProcessGroupGloo(self._store(rendezvous), client, num_clients, self._timeout)
        except (RuntimeError, ValueError) as error:  # the errors of torch.distributed
            raise SwagError(
                f"Client {client} of {num_clients} did not meet the others at {rendezvous!r} within {timeout:g} s: {error}"
            ) from error

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all clients in the order of their numbers; every client has to call this. Shape (n, *shape).

        Raises:
            SwagError: A client did not come in time: it failed, or its run has other steps.
        """
        tensor = tensor.detach().cpu().contiguous()
        found = [torch.empty_like(tensor) for _ in range(self.num_clients)]
        try:
            self._group.allgather([found], [tensor]).wait(self._timeout)
        except RuntimeError as error:
            raise SwagError(
                f"Client {self.client} waited for the others in vain: one of them has failed or ended. {error}"
            ) from error
        return torch.stack(found)

    def _store(self, rendezvous: str) -> dist.Store:
        if not rendezvous.startswith("tcp://"):
            return dist.FileStore(rendezvous, self.num_clients)
        host, separator, port = rendezvous.removeprefix("tcp://").rpartition(":")
        if not separator or not port.isdigit():
            raise SwagError(f"rendezvous must be a path or tcp://host:port, got {rendezvous!r}.")
        return dist.TCPStore(host, int(port), self.num_clients, is_master=self.client == 0, timeout=self._timeout)
