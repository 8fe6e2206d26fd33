"""SwagCallback: collects a SWAG posterior during Trainer.train, through checkpoints, resumption and pushes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from swag_trainer.adapters.initialisation import initial_lora_if_needed
from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.adapters.precision import low_precision_warning, upcast_to_float32
from swag_trainer.adapters.rank_allocation import keep_every_rank
from swag_trainer.adapters.read_back import check_loadable
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.acceptance import Adaptive, propose
from swag_trainer.collection.checkpoints import adapters_digest
from swag_trainer.collection.collector import SwagCollector
from swag_trainer.collection.diagnostics import warning
from swag_trainer.collection.final_weights import check_evaluates, compare_with_mean, evaluates
from swag_trainer.collection.learning_rate import CollectionRate, apply_collection_rate
from swag_trainer.collection.log_metrics import CollectionMetrics
from swag_trainer.collection.ood import check_ood_features, with_ood_features
from swag_trainer.collection.output_folder import delete_stale_posterior, save_portable, warn_about_plain_lora
from swag_trainer.collection.rank_budget import steps_with_final_ranks
from swag_trainer.collection.records import moments_file, register, store
from swag_trainer.collection.resume import TrainingRun, steps_per_epoch
from swag_trainer.collection.schedule import Evenly, Schedule, collection_steps, describe, steps_digest
from swag_trainer.collection.snapshot_count import collected_too_few, planned_too_few
from swag_trainer.collection.trainer_access import (
    TrainerAware,
    TrainerLogMetrics,
    asked_by_a_new_state,
    evaluate_without_logging,
    output_folder,
    wait_for_uploads,
    warn_without_trainer,
)
from swag_trainer.collection.trainer_mixin import SwagTrainerMixin
from swag_trainer.collection.training_state import at_evaluated_weights, leave_at_evaluated_weights
from swag_trainer.distributed import count_processes, is_first
from swag_trainer.errors import SwagError, TooFewCollectionsError
from swag_trainer.posterior.coefficients import CoefficientPosterior
from swag_trainer.posterior.saved_adapter import InitialWeights
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.tasks.by_hand import limits_of

logger = logging.getLogger(__name__)


class SwagCallback(TrainerAware, TrainerCallback, ExportableState):
    """Collects a SWAG posterior over a PEFT adapter's weights while the Trainer trains it.

    Examples:
        >>> from swag_trainer import Every, SwagCallback
        >>> swag = SwagCallback()                                                     # good as it is; or:
        >>> swag = SwagCallback(schedule=Every(steps=50, start=0.5), rank=20, learning_rate=2e-4)

    Put it into ``Trainer(callbacks=[swag])``; a Trainer that inherits from `SwagTrainerMixin` hands itself over, any other is found. When training is over, ``swag.posterior`` is the posterior, the adapter in the model
    holds its mean (the SWA solution), and both lie in ``args.output_dir``, so that ``trainer.push_to_hub()`` takes them along.
    Every ``checkpoint-N`` holds the moments so far; a resumed run ends with the posterior of an uninterrupted one, bit for bit.

    The defaults were chosen by experiment: MiniLM-L6 with LoRA r=8 on query and value, a temperature fitted to 100 validation examples, test
    NLL, means over five seeds (docs/benchmarks.md, "Settings of the collection"). Beginning at 0.5 of the run in place of 0.3 was worse by 0.008 on
    the demo's messages, by 0.006 on 15 banking intents of CLINC150, and by 0.02 on 64 and 77 classes (three runs); 15 or 60 snapshots in place of
    30, and K = 5 in place of 20, changed less than 0.003 on the first two. Halving the rate that is held was worse by 0.024 on the first and better by 0.007 on the second. The same training without
    collection and with its rate decaying to zero was worse by 0.039 and 0.007. A run too short to fit its data wants a later start: after 100
    steps on 150 examples (two seeds, LoRA on the pooler too) 0.5 gave 0.450 and 0.408, 0.7 gave 0.457 and 0.373, no collection 0.464 and 0.369.

    Args:
        schedule: When to collect: `Every`, `Evenly` or anything with their one method.
        rank: K, how many deviations to keep. 0 gives SWAG-diagonal, 1 is no covariance and refused.
        learning_rate: The rate while collecting. "hold" keeps the one that the Trainer's schedule has reached at the first
            collection; a number is approached linearly and then held; None keeps the Trainer's schedule, and warns if it falls by
            more than half meanwhile.
        final_weights: What the adapter holds after training: the posterior "mean"; what the Trainer left ("trained": the last iterate, or
            the best one under ``load_best_model_at_end``); or the "better" of the two on the Trainer's own evaluation. The posterior
            is the same. The mean is the default, as it is where predictions are averaged around, and as the choice of "better" is
            made on the data that the Trainer evaluates on. A mean that is worse there is reported, with both numbers.
        acceptance: `Adaptive` lets the evaluations decide which weights are collected (ASWA): the schedule then says only when this
            begins, and every evaluation from there on proposes the weights that it evaluated.
        low_precision: Treatment of trained weights below float32, a head on a bfloat16 base for instance: "warn", or "upcast" to
            hold them in float32 from the moment the Trainer is made. LoRA's own matrices are float32 already.
        ood_features: At the end, run the training examples (at most 10,000) once more at the mean weights and fit the class means that
            the OOD score needs; measure the distances of the evaluation examples, if there are any.
        adapter_name: Which adapter to collect; default: the active one.
        name: Tells several SwagCallbacks of one Trainer apart. The one called "default" saves beside the adapter in ``output_dir``;
            another saves adapter and posterior in a folder of its name there, and never writes into the model.
        resume_from: Folder of the checkpoint that training resumes from, where that is not ``output_dir/checkpoint-N``: the
            Trainer does not pass it to a callback.
        device: Where the statistics live.
    """

    def __init__(
        self,
        schedule: Schedule = Evenly(),  # noqa: B008 - frozen
        *,
        rank: int = 20,
        learning_rate: CollectionRate = "hold",
        acceptance: Adaptive | None = None,
        final_weights: Literal["mean", "trained", "better"] = "mean",
        low_precision: Literal["warn", "upcast"] = "warn",
        ood_features: bool = False,
        adapter_name: str | None = None,
        name: str = "default",
        resume_from: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if rank < 0 or rank == 1:
            raise ValueError(f"SwagCallback(rank=...) must be 0 (diagonal only) or at least 2, got {rank}.")
        if not (learning_rate is None or learning_rate == "hold" or (not isinstance(learning_rate, str) and learning_rate > 0)):
            raise ValueError(
                f'SwagCallback(learning_rate=...) must be "hold", None or a number above 0, got {learning_rate!r}.'
            )
        if final_weights not in ("mean", "trained", "better"):
            raise ValueError(f'SwagCallback(final_weights=...) must be "mean", "trained" or "better", got {final_weights!r}.')
        if low_precision not in ("warn", "upcast"):
            raise ValueError(f'SwagCallback(low_precision=...) must be "warn" or "upcast", got {low_precision!r}.')
        self.moments_file = moments_file(name)  # checks the name
        self.schedule = schedule
        self.rank = rank
        self.learning_rate = learning_rate
        self.acceptance = acceptance
        self.final_weights = final_weights
        self.low_precision = low_precision
        self.ood_features = ood_features
        self.adapter_name = adapter_name
        self.name = name
        self.resume_from = resume_from
        self.device = device
        self._collector: SwagCollector | None = None
        self._posterior: SwagPosterior | CoefficientPosterior | None = None
        self._run: TrainingRun | None = None
        self._rate_falls = False
        self._prepared: Any = None  # the model that `_prepare` saw, and what it found
        self._stay_low: list[str] = []
        self._initial: InitialWeights | None = None
        self._log_metrics: CollectionMetrics | None = None
        self._log_callback: TrainerLogMetrics | None = None

    @property
    def posterior(self) -> SwagPosterior | CoefficientPosterior:
        """The posterior: the final one after training, the provisional one during it; over coefficients with `train_coefficients`.

        Raises:
            TooFewCollectionsError: Fewer than two weight vectors were collected.
            SwagError: During a distributed run, in a process other than the first.
        """
        if self._posterior is not None:
            return self._posterior
        if self._collector is None:
            raise TooFewCollectionsError(
                "SwagCallback has collected nothing: training has not begun. Was it passed to Trainer(callbacks=[...])?"
            )
        return self._collector.posterior()

    def __repr__(self) -> str:
        """Settings, and how far the collection has come."""
        state = "not begun"
        if self._collector is not None:
            state = f"{self.num_collected} snapshots, {'finished' if self._run is None else 'collecting'}"
        name = "" if self.name == "default" else f", name={self.name!r}"
        return f"SwagCallback({describe(self.schedule)}, rank={self.rank}, learning_rate={self.learning_rate!r}{name}: {state})"

    @property
    def num_collected(self) -> int:
        """How many weight vectors were collected so far; in a distributed run in the first process, and in all of them at the end."""
        return 0 if self._collector is None else len(self._collector.snapshots.steps)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **kwargs: Any
    ) -> None:
        """Look at the model before the Trainer makes its optimizer and before it loads a checkpoint."""
        with contextlib.suppress(SwagError):  # raised when training begins
            self._prepare(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **kwargs: Any
    ) -> None:
        """Check everything that would otherwise fail late, take over the learning rate, and read the moments of a resumed run."""
        record = register(state, callback=type(self).__name__, name=self.name)
        self._posterior, self._run = None, None
        if adapted_model(model) is not self._prepared:  # ``model_init`` made it anew
            self._prepare(model)
        choice = {"schedule": describe(self.schedule), "acceptance": None if self.acceptance is None else str(self.acceptance)}
        self._collector = SwagCollector(
            model, rank=self.rank, adapter_name=self.adapter_name, device=self.device, initial=self._initial, **choice
        )
        low = low_precision_warning(self._collector.weights.named_parameters(), stay=self._stay_low)
        if is_first():
            _warn(low)
        epoch = steps_per_epoch(kwargs.get("train_dataloader"), args)
        steps = collection_steps(self.schedule, max_steps=state.max_steps, steps_per_epoch=epoch)
        if len(steps) < 2:
            raise TooFewCollectionsError(
                f"A posterior needs at least 2 collections: {self.schedule} collects at {len(steps)} of the {state.max_steps} steps of this run. "
                "Collect more often or start earlier; SwagCallback() without arguments fits any length."
            )
        steps = steps_with_final_ranks(steps, self._collector.weights, max_steps=state.max_steps)
        trainer = self.find_trainer(state)
        if is_first():
            _warn(None if self.acceptance is not None else planned_too_few(len(steps), self.schedule))
            _warn(limits_of(base_model(self._collector.weights.model)))
        if self.acceptance is not None:
            self.acceptance.check(args, trainer)
        if self.final_weights == "better":
            check_evaluates(args, trainer, is_sharded=self._collector.weights.is_sharded)
        if self.ood_features:
            check_ood_features(self._collector.weights, trainer)
        if trainer is None and is_first():
            warn_without_trainer()
        scheduler = kwargs["lr_scheduler"]
        self._rate_falls = apply_collection_rate(scheduler, self.learning_rate, first=steps[0], last=steps[-1])
        settings = {"rank": self.rank, "max_steps": state.max_steps, "world_size": count_processes(), **choice}
        settings |= {"collection_steps": steps_digest(steps), "learning_rate": self.learning_rate}
        run = TrainingRun(args, state, scheduler, frozenset(steps), settings, output_folder(trainer, args))
        if state.global_step > 0:
            run.resume(self._collector, record, filename=self.moments_file, resume_from=self.resume_from)
        self._run = run
        # For a checkpoint that was made before this callback came to its step.
        self.on_step_end(args, state, control, optimizer=kwargs.get("optimizer"))
        self._log_metrics = CollectionMetrics(self._collector, self.name)
        if trainer is not None and not isinstance(trainer, SwagTrainerMixin):
            if self._log_callback is not None:  # of a run that was interrupted
                self._log_callback.remove(trainer)
            self._log_callback = TrainerLogMetrics(self.log_metrics)
            self._log_callback.insert_first(trainer)

    def log_metrics(self) -> Mapping[str, float]:
        """Return the metrics of the collection for the next training log; empty outside of a training run."""
        return {} if self._run is None or self._log_metrics is None else self._log_metrics()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Collect if the schedule says so: once per optimizer step, after the learning rate's scheduler."""
        run = self._run
        if run is None or self.acceptance is not None or state.global_step == run.last_processed_step:
            return
        run.last_processed_step = state.global_step
        if state.global_step in run.collection_steps:
            with at_evaluated_weights(kwargs.get("optimizer")):
                self._collector.collect(step=state.global_step, learning_rate=run.rate_of_step())

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, metrics: dict[str, Any], **kwargs: Any
    ) -> None:
        """With `Adaptive` acceptance: propose the weights that were just evaluated, once for each step."""
        run = self._run
        step, acceptance = state.global_step, self.acceptance
        if run is None or acceptance is None or step == run.last_processed_step or step < min(run.collection_steps):
            return
        trainer = self.find_trainer(state)
        if not acceptance.is_measured_in(metrics, trainer.eval_dataset):
            return
        run.last_processed_step = step
        data_set = acceptance.data_set_of(trainer.eval_dataset)
        propose(
            self._collector,
            acceptance,
            running=acceptance.score(metrics),
            evaluate=lambda: acceptance.score(evaluate_without_logging(trainer, data_set)),
            step=step,
            learning_rate=run.rate_of_step(),
        )

    def state(self) -> dict[str, Any]:
        """Write the moments into the checkpoint that the Trainer is saving, and digests of them and of the adapters into its record.

        The Trainer asks for this on every kind of save, after the adapter and before trainer_state.json, the push and the deletion
        of old checkpoints; ``on_save`` comes after all of these and not at all for a checkpoint made on SIGTERM. Only the process
        that saves is asked, so nothing is collected here: a checkpoint made at a collection step before `on_step_end` was called is
        resumed from by collecting the weights that it holds.

        Returns:
            Nothing to restore: with ``restore_callback_states_from_checkpoint`` the Trainer would put a new object in the place of
            the user's, whose posterior would then never appear.
        """
        run = None if asked_by_a_new_state() else self._run
        if run is not None and self._collector is not None and run.checkpoint_folder().is_dir():
            run.saved, folder = run.state.global_step, run.checkpoint_folder()
            digest = self._collector.save(folder / self.moments_file) if self.num_collected and is_first() else None
            store(run.state, self.name, run.record(digest, adapters_digest=adapters_digest(folder)))
        return {"args": {}, "attributes": {}}

    def on_push_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the posterior into the output folder before the Trainer uploads it; only the process that uploads is asked."""
        if self._collector is None or not args.should_save or not is_first():
            return
        trainer = self.find_trainer(state)
        wait_for_uploads(trainer)
        folder = self._folder_in(Path(args.output_dir))
        if self._run is None and self._posterior is not None:
            save_portable(self._posterior, folder)
        elif self._run is not None and self.num_collected >= 2:
            # Beside the adapter in the checkpoint: that is what the Trainer copies into the folder now.
            adapter = self._run.saved_adapter(self._collector.weights)
            save_portable(self._collector.posterior(adapter=adapter), folder)
        else:
            delete_stale_posterior(trainer, folder, args.output_dir)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the mean into the adapter, make the posterior, and save both in the output folder."""
        run, self._run = self._run, None
        if run is None or self._collector is None:
            return
        leave_at_evaluated_weights(kwargs.get("optimizer"))
        trainer = self.find_trainer(state)
        if trainer is not None:
            if self._log_callback is not None:
                self._log_callback.remove(trainer)
            wait_for_uploads(trainer)
            if self.name == "default":  # the others want the model as the Trainer left it, before the mean is put into it
                for other in trainer.callback_handler.callbacks:
                    if isinstance(other, SwagCallback) and other is not self:
                        other.on_train_end(args, state, control, **kwargs)
        if self.name == "default":
            keep_every_rank(self._collector.weights.model, self._collector.weights.adapter_name)
        is_default, takes_mean = self.name == "default", self.final_weights == "mean"
        compares = (takes_mean and is_default) or self.final_weights == "better"
        compares = compares and evaluates(args, trainer) and not self._collector.weights.is_sharded
        posterior = self._collector.finish(into_model=takes_mean and is_default and not compares)
        if is_first():
            planned = len(run.collection_steps) if self.acceptance is None else None
            steps = {"first_step": min(run.collection_steps), "last_step": state.global_step, "max_steps": state.max_steps}
            _warn(collected_too_few(self.num_collected, planned=planned, **steps))
        if posterior is None:
            return  # not raised: the trained model must reach the lines after trainer.train(); `posterior` raises when it is asked for
        if compares:
            found = compare_with_mean(trainer, args, state, self._collector.weights, self._collector.mean)
            takes_mean = takes_mean or found is None or not found.mean_is_worse
            if found is not None:
                found.log(mean_is_used=takes_mean)
            if takes_mean and is_default:
                posterior = self._collector.finish(into_model=True)
        rates = run.group_rates(posterior.collection.last_step)
        if len(set(rates)) > 1:
            posterior = replace(posterior, collection=replace(posterior.collection, group_learning_rates=rates))
        if takes_mean and not is_default:
            posterior = replace(posterior, adapter=posterior.adapter.with_weights(posterior.mean))
        self._posterior = posterior
        if self.ood_features:
            self._posterior = posterior = with_ood_features(posterior, self._collector.weights, trainer)
        rates = [] if self._rate_falls else posterior.collection.learning_rates  # a warning was logged at the beginning
        concern = warning(posterior.collection.diagnostics, rates)
        if is_first():
            _warn(concern)
        check_loadable(self._collector.weights, posterior.adapter)
        if args.should_save:
            save_portable(posterior, self._folder_in(run.output))
            warn_about_plain_lora(posterior)

    def _prepare(self, model: Any) -> None:
        """Hold the trained weights in float32 if asked to, and keep A0 and B0 where the adapter's initialisation changed the base."""
        weights = AdapterWeights(model, self.adapter_name)
        if self.low_precision == "upcast":
            self._stay_low = upcast_to_float32(weights.model, weights.named_parameters())
        self._initial = initial_lora_if_needed(weights.model, weights.adapter_name)
        self._prepared = weights.model

    def _folder_in(self, output: Path) -> Path:
        return output / (self._collector.weights.subfolder if self.name == "default" else self.name)


def _warn(concern: str | None) -> None:
    if concern:
        logger.warning("%s", concern)
