"""The order of the training examples in an epoch that is interrupted and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swag_trainer.posterior.atomic import write_bytes

STATE_FILE = "epoch_rng_state.bin"


class ResumableOrder(TrainerCallback):
    """Lets a resumed epoch take its examples in the order in which it began.

    transformers' sampler that groups examples by their length (5.23) draws the order from PyTorch's global random state at the beginning of
    an epoch. A resumed run passes over the batches that were trained on, in an order that it draws anew. This callback keeps the
    random state of the beginning in each checkpoint. After the passed batches the Trainer itself restores that of the checkpoint.

    Args:
        checkpoint: The checkpoint that the run goes on from; None for a run from the beginning.
    """

    def __init__(self, checkpoint: str | None) -> None:
        path = None if checkpoint is None else Path(checkpoint) / STATE_FILE
        self._resumed: Tensor | None = None
        if path is not None and path.is_file():
            self._resumed = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        self._state: Tensor | None = None

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the random state, in the first epoch of a resumed run after putting back the one that it began with."""
        if self._resumed is not None:
            torch.set_rng_state(self._resumed)
            self._resumed = None
        self._state = torch.get_rng_state()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the random state of the epoch's beginning into the checkpoint."""
        if self._state is not None and state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_bytes(folder / STATE_FILE, self._state.numpy().tobytes())
