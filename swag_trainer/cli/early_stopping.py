"""Early stopping whose patience survives an interruption."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments


class ResumableEarlyStopping(EarlyStoppingCallback):
    """Stops a run whose evaluation loss has not fallen for a number of evaluations, those before a resumption included.

    transformers keeps that number in the checkpoint and restores it only together with the state of all callbacks, which would replace the
    SwagCallback by a new one.

    Args:
        early_stopping_patience: How many evaluations in a row may be no better than the best.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the evaluations since the best one."""
        super().on_train_begin(args, state, control, **kwargs)
        losses = [log["eval_loss"] for log in state.log_history if "eval_loss" in log]
        self.early_stopping_patience_counter = len(losses) - 1 - losses.index(min(losses)) if losses else 0
