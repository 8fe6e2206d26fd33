"""Ctrl-C during a training run: the run is saved as a checkpoint, from which it goes on exactly."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swag_trainer.cli.resumable import ResumableInterrupt
from swag_trainer.distributed import count_processes


class SaveOnInterrupt(TrainerCallback):
    """Saves a checkpoint at the end of the step in which Ctrl-C was pressed, and ends the training there.

    A second Ctrl-C ends it at once. A run of several processes is left alone: the signal reaches them at different steps, and a
    checkpoint needs all of them at one.

    Attributes:
        requested: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C over for the length of a ``with`` block; outside of the main thread, which alone can, nothing changes."""
        if threading.current_thread() is not threading.main_thread() or count_processes() > 1:
            yield
            return
        before = signal.signal(signal.SIGINT, self._request)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint; a run whose last step is over is finished instead."""
        if self.requested and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the training once the checkpoint is there.

        Raises:
            ResumableInterrupt: Ctrl-C was pressed.
        """
        if self.requested and state.global_step < state.max_steps:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            raise ResumableInterrupt(
                f"Interrupted after step {state.global_step} of {state.max_steps}, which is saved in {str(checkpoint)!r}."
            )

    def _request(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        sys.stderr.write("\nCtrl-C: the run is saved at the end of this step. Press it again to stop without saving.\n")
