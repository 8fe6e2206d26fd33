"""State of the current training run, and exact resumption from a checkpoint."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import transformers
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerState, TrainingArguments

from swag_trainer.adapters.rank_allocation import kept_ranks
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.checkpoints import adapters_digest
from swag_trainer.collection.collector import SwagCollector
from swag_trainer.collection.trainer_access import leaves_out_adapter
from swag_trainer.distributed import broadcast_document, is_first
from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError, SwagError, shortened
from swag_trainer.posterior.saved_adapter import SavedAdapter


class TrainingRun:
    """One call of ``Trainer.train``, or one trial of a hyperparameter search.

    Args:
        args: The Trainer's arguments.
        state: The Trainer's state, which it goes on changing.
        lr_scheduler: The Trainer's scheduler.
        collection_steps: The steps at which the schedule collects.
        settings: What has to be the same when the run is resumed, as JSON values.
        output: Where the Trainer saves the run's checkpoints and its result belongs.

    Attributes:
        last_processed_step: The last step that was processed. A checkpoint's own step was processed before it was saved, unless the
            checkpoint was made on SIGTERM, before this callback was called.
        saved: The last step of which this run saved a checkpoint; None if it saved none. The folder may hold those of earlier runs.
    """

    def __init__(
        self,
        args: TrainingArguments,
        state: TrainerState,
        lr_scheduler: Any,
        collection_steps: frozenset[int],
        settings: dict[str, Any],
        output: Path,
    ) -> None:
        self.args = args
        self.state = state
        self.lr_scheduler = lr_scheduler
        self.collection_steps = collection_steps
        self.settings = settings
        self.output = output
        self.last_processed_step = state.global_step
        self.saved: int | None = None

    def rate_of_step(self) -> float | None:
        """The learning rate that the step just made was taken with, as the Trainer logs it; the scheduler is one ahead by now."""
        scheduler = self._scheduler()
        if isinstance(scheduler, LambdaLR):
            return _rates(scheduler, scheduler.last_epoch)[0]
        return None if scheduler is None else float(scheduler.get_last_lr()[0])

    def group_rates(self, step: int) -> list[float]:
        """The learning rates of all groups of parameters at a step; empty where there is one group, or the schedule cannot be asked."""
        scheduler = self._scheduler()
        return _rates(scheduler, step) if isinstance(scheduler, LambdaLR) and len(scheduler.base_lrs) > 1 else []

    def _scheduler(self) -> Any:
        return getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate wraps it for DeepSpeed

    def checkpoint_folder(self) -> Path:
        """Where the Trainer saves the checkpoint of this step."""
        return self.output / f"checkpoint-{self.state.global_step}"

    def saved_adapter(self, weights: AdapterWeights) -> SavedAdapter | None:
        """Return the adapter that the Trainer saved at this step, which is the one it is about to push; None without a checkpoint, or where it
        has some of its ranks alone."""
        some_ranks = kept_ranks(weights.model, weights.adapter_name) is not None  # AdaLoRA's posterior is of all
        if self.saved != self.state.global_step or some_ranks:
            return None
        folder = self.checkpoint_folder()
        # PEFT writes every adapter but "default" into a folder of its own.
        folder = folder / weights.adapter_name if (folder / weights.adapter_name).is_dir() else folder
        return weights.portable(SavedAdapter.read(folder))

    def record(self, digest: str | None, *, adapters_digest: str) -> dict[str, Any]:
        """Return the entry of trainer_state.json about the moments and the adapters in a checkpoint of this step."""
        return {
            "step": self.state.global_step,
            "last_processed_step": self.last_processed_step,
            "digest": digest,
            "adapters_digest": adapters_digest,
            **self.settings,
        }

    def resume(
        self, collector: SwagCollector, record: dict[str, Any] | None, *, filename: str, resume_from: str | Path | None
    ) -> None:
        """Go on where the checkpoint was made; every process has to call this.

        Args:
            collector: To fill with the checkpoint's moments.
            record: The entry of the checkpoint's trainer_state.json, see `record`; None if it has none.
            filename: File name of the moments in a checkpoint.
            resume_from: Where to look first.

        Raises:
            SwagError: The run cannot be resumed exactly; the error says why.
        """
        # The moments are the first process's, and trainer_state.json may lie on every server.
        record = broadcast_document(record)
        if leaves_out_adapter(collector.weights):
            self._load_adapter(collector, record and record.get("adapters_digest"), resume_from)
        step = self.state.global_step
        passed = sum(collection <= step for collection in self.collection_steps)
        if record is None:
            if passed:
                raise SwagError(
                    f"The checkpoint at step {step} was made without SwagCallback, but {passed} collections come before it. "
                    "Train from an earlier checkpoint, or start the collection later."
                )
            return
        if passed and self._schedule_begins_anew():
            raise SwagError(
                f"The checkpoint at step {step} has {passed} collections behind it, but not the state of the learning rate's schedule, "
                "which would begin anew, and the optimizer with it: the posterior would be that of no run. Checkpoints made with "
                "save_only_model=True are such. Train anew, or resume from a checkpoint that was saved whole."
            )
        changed = self._changed_setting(record)
        if changed is not None:
            then, now = (shortened(repr(settings.get(changed))) for settings in (record, self.settings))
            raise SwagError(
                f"The checkpoint at step {step} was made with {changed}={then}, this run has {changed}={now}: its posterior would be that "
                "of neither run. Resume with the old setting, or train anew."
            )
        if record["digest"] is not None:
            self._restore(collector, record["digest"], filename, resume_from)
        # "handled": its name in checkpoints of earlier versions.
        processed = record.get("last_processed_step", record.get("handled"))
        self.last_processed_step = processed if isinstance(processed, int) else step

    def _changed_setting(self, record: dict[str, Any]) -> str | None:
        """Return a setting that the checkpoint was made with another value of; of the schedule, what it does counts."""
        # Checkpoints of earlier versions state how the schedule prints, and no learning rate.
        states_steps = "collection_steps" in record
        for name, now in self.settings.items():
            if name == ("schedule" if states_steps else "collection_steps") or (name == "learning_rate" and name not in record):
                continue
            if record.get(name) != now:
                return "schedule" if name == "collection_steps" else name
        return None

    def _schedule_begins_anew(self) -> bool:
        """Did the Trainer go on, as it does without a warning, although the checkpoint has no scheduler.pt?"""
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate wraps it for DeepSpeed
        return isinstance(scheduler, LambdaLR) and scheduler.last_epoch == 0

    def _restore(self, collector: SwagCollector, digest: str, filename: str, resume_from: str | Path | None) -> None:
        """Read the moments in the first process; the others get the outcome and the score."""
        problem = None
        if is_first():
            try:
                self._read_moments(collector, digest, filename, resume_from)
            except SwagError as error:
                problem = error
        # The score too, because every process decides by it.
        message, collector.score = broadcast_document([problem and str(problem), collector.score])
        if message is not None:
            raise problem or SwagError(message)

    def _load_adapter(self, collector: SwagCollector, digest: str | None, resume_from: str | Path | None) -> None:
        """Load the adapter of the checkpoint in every process, as the Trainer does with the others."""
        looked_at = self._folders(resume_from)
        for folder in looked_at:
            if folder.is_dir() and digest in (None, adapters_digest(folder)):
                collector.weights.load(SavedAdapter.read(folder))
                return
        raise SwagError(
            f'transformers {transformers.__version__} resumes without the adapter "default" where there are others, and it was not '
            f"found in {', '.join(repr(str(folder)) for folder in looked_at)}. Name the folder that training resumes from, "
            "SwagCallback(resume_from=...), or install transformers 5.23."
        )

    def _folders(self, resume_from: str | Path | None) -> list[Path]:
        """Where the checkpoint may lie that training resumes from; the Trainer does not pass it on."""
        named = [resume_from, self.args.resume_from_checkpoint, self.checkpoint_folder()]
        return [Path(folder) for folder in named if folder and not isinstance(folder, bool)]

    def _read_moments(self, collector: SwagCollector, digest: str, filename: str, resume_from: str | Path | None) -> None:
        step = self.state.global_step
        looked_at: list[str] = []
        for folder in self._folders(resume_from):
            try:
                collector.restore(folder / filename, digest=digest)
                return
            except (PosteriorFormatError, PosteriorNotFoundError) as error:
                looked_at.append(str(error))
        raise SwagError(
            f"The checkpoint at step {step} needs its {filename}, and none with the recorded digest was found: {' '.join(looked_at)} "
            "If training resumes from another folder, name it: SwagCallback(resume_from=...)."
        )


def steps_per_epoch(dataloader: Any, args: TrainingArguments) -> float | None:
    """How many optimizer steps an epoch has; None where the data set has no length."""
    try:
        return max(1, ceil(len(dataloader) / args.gradient_accumulation_steps))
    except TypeError:
        return None


def _rates(scheduler: LambdaLR, step: int) -> list[float]:
    """Return the rate of every group that a step was taken with, after one step of the scheduler less."""
    groups = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    return [float(base * factor(max(0, step - 1))) for base, factor in groups]
