"""MonteCarloPredictor: averaged predictions of a model under weight draws of a posterior."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import default_data_collator

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.distributed import Processes, digest
from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.draw_logits import DrawLogits, Method, check_method, with_classes
from swag_trainer.prediction.lengths import batches_of_one_length, length_of
from swag_trainer.prediction.monte_carlo import checked_max_error, error_limit
from swag_trainer.prediction.ood import OodScorer, has_ood_score
from swag_trainer.prediction.predictive import Predictive, RegressionPredictive, apply_link, summarise
from swag_trainer.prediction.sampler import Sampling, SamplingChanges
from swag_trainer.tasks import task_for, task_named, task_of
from swag_trainer.tasks.base import Link, Task
from swag_trainer.tasks.by_hand import refuse_without_predictor

_MOST_BLOCKS = 10
_ADVICE = (
    "Call predict() in every process with the whole data set, and MonteCarloPredictor with the same posterior and settings; or pass "
    "across_processes=False to it, and each process predicts what it was given."
)


class MonteCarloPredictor:
    """Averages a model's predictions over weights drawn from a posterior.

    The draws are made once and serve every call, so the prediction for an example depends neither on its batch nor on the order. They go
    into a private copy of the adapter that shares the base model's tensors: the model itself is never written, and may run plain
    forwards meanwhile. Calls from several threads wait for each other. Many draws go into one forward where the adapter allows it
    (`PackedSampler`), and otherwise one after the other; the predictions are the same.

    Where the posterior has one, each prediction has an OOD score, at the cost of one forward at the mean weights, whatever the draws.

    The fields of `Sampling` may be given as keywords: ``MonteCarloPredictor(model, posterior, num_samples=10, seed=0)``.

    Args:
        model: The PEFT model, on the device to predict on.
        posterior: A posterior of its active adapter, of any kind. A `PointPosterior` costs one pass, as ``scale=0`` does.
        sampling: How to draw and average.
        task: What of the model's outputs is predicted; default: the task in the posterior's record, sequence classification if it has none.
        method: "monte_carlo" draws weights. "linearized" takes the model as linear in its weights around the mean, which makes the logits
            normal in closed form, see `LinearizedSampler`: one forward and a backward pass for each class, for few classes, and for a
            Gaussian posterior. Then ``num_samples`` and ``design`` are not used: predictions are averaged over 1,024 draws of the logits.
            They have a bias, which grows with the posterior's width and is no Monte-Carlo error.
        num_blocks: How many independent blocks of ``num_samples`` draws; default: 1. The Monte-Carlo standard error of matched draws can
            be estimated from two blocks or more; one block of S draws is more exact than two of S / 2.
        max_error: Go on drawing blocks for a row until, with 95 % confidence, the standard error of each of its probabilities (of its
            outputs, in a regression) is below this, up to ``num_blocks``, which is then 10 by default; a row that has all of them in its
            ``num_draws`` may be further off. The confidence is that of a single look at a row, by a limit that takes the blocks'
            means for normal; it is not a promise for all rows at once, and does not measure how well the posterior itself fits.
        adapter_name: The adapter's name, if another than the active one is a mistake.
        batch_size: Rows per forward when a data set is given.
        data_collator: Makes a batch of rows; the default takes rows as tokenizers make them.
        progress: Show a bar when a data set takes more than two seconds.
        across_processes: Under ``torchrun`` or ``accelerate launch``, share the rows of a data set among the processes; each of them
            has to call `predict`, and gets all predictions. False: each process predicts what it was given, and need not be in step.
        max_tokens: Most draws x rows x tokens in one forward; None for 1,024 on a CPU and what the memory holds on a GPU.
        compile: Run forwards through ``torch.compile``: for GPUs and many batches of few shapes.
        changes: Fields of `Sampling`, which replace those of ``sampling``.

    Attributes:
        sampling: The settings, with the posterior's scale, centre, dropout and temperature in the place of None.
        task: What is predicted.
        link: How logits become predictions: "softmax", "sigmoid" or "identity".
        num_blocks, max_error: As they are used; at scale 0 there is no Monte-Carlo error to bring down.

    Raises:
        AdapterMismatchError: The posterior has other weights than the adapter.
        SwagError: A setting is unknown or out of range, or does not go with the method; the adapter is merged, switched off or not active;
            the model is for a task without a predictor.
    """

    def __init__(
        self,
        model: nn.Module,
        posterior: WeightPosterior,
        sampling: Sampling | None = None,
        *,
        task: Task | None = None,
        method: Method = "monte_carlo",
        num_blocks: int | None = None,
        max_error: float | None = None,
        adapter_name: str | None = None,
        batch_size: int = 32,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
        progress: bool = True,
        across_processes: bool = True,
        max_tokens: int | None = None,
        compile: bool = False,
        **changes: Unpack[SamplingChanges],
    ) -> None:
        own = inspect.signature(MonteCarloPredictor).parameters
        self.sampling = (sampling or Sampling()).changed(changes, also=own).resolved(posterior)
        _check_at_least_1(num_blocks=num_blocks, batch_size=batch_size, max_tokens=max_tokens)
        checked_max_error(max_error)
        in_blocks = max_error is not None or num_blocks not in (None, 1)
        check_method(method, posterior, self.sampling, compile=compile, in_blocks=in_blocks)
        self.method = method
        if task is None and posterior.record.task is None:  # as in files of before its task was known
            base = base_model(adapted_model(model))
            refuse_without_predictor(base)
            task = task_named(task_of(base))
        self.task = task or task_for(posterior.record)
        self.batch_size = batch_size
        self.progress = progress
        self.across_processes = across_processes
        self._collate = data_collator
        self._posterior = posterior
        # At scale 0 every draw is the mean: one pass, no Monte-Carlo error, and a mutual information of exactly 0.
        is_mean = self.scale == 0 and not self.sampling.dropout
        self.max_error = None if is_mean else max_error
        self.num_blocks = 1 if is_mean else num_blocks or (1 if max_error is None else _MOST_BLOCKS)
        self._logits = DrawLogits(
            model,
            posterior,
            self.sampling,
            task=self.task,
            method=method,
            num_blocks=self.num_blocks if self.max_error is None else 1,
            adapter_name=adapter_name,
            max_tokens=max_tokens,
            compile=compile,
        )
        self.link = self.task.link(self._logits.base.config)
        self._ood_scores = (
            OodScorer(model, posterior, task=self.task, adapter_name=adapter_name) if has_ood_score(posterior) else None
        )
        self._check_temperature()

    @property
    def scale(self) -> float:
        """Factor of the covariance that is drawn with."""
        return float(self.sampling.scale or 0.0)

    @property
    def temperature(self) -> float:
        """What each draw's logits are divided by."""
        return float(self.sampling.temperature or 1.0)

    def draw_weights(self, num_draws: int) -> Tensor | None:
        """Return what each of the first draws counts in an average. Shape (num_draws,), sums to 1; None where all count the same."""
        return self._logits.averaging(num_draws)["weights"]

    def draw_members(self, num_draws: int) -> Tensor | None:
        """Return the member of a mixture that each of the first draws comes from. Shape (num_draws,); None for a single posterior."""
        return self._logits.members(num_draws)

    def with_output(self, *, link: Link | None = None, temperature: float | None = None) -> MonteCarloPredictor:
        """Return a predictor with the same draws and the same copy of the model, but another link or temperature.

        Raises:
            SwagError: The temperature is out of range, or not 1 for the link "identity".
        """
        other = copy.copy(self)
        other.link = link or self.link
        if temperature is not None:
            other.sampling = replace(self.sampling, temperature=temperature)
        other._check_temperature()
        return other

    def predict(self, data: Any, *, return_draws: bool = False) -> Predictive | RegressionPredictive:
        """Predict a data set or a batch.

        Args:
            data: A batch (a mapping of tensors, as a tokenizer returns it with ``return_tensors="pt"``), or a data set: a sequence of
                rows as the Trainer takes them. Labels and columns that the model does not know are left out. The processes of a
                launched run share the batches of a data set, which are those that one process would make: on equal machines, with as
                many threads each, the predictions are the same bit for bit. Each process predicts a batch by itself.
            return_draws: Keep each draw's prediction as well; not with ``max_error``, where rows differ in how many they have.

        Returns:
            A `Predictive`, or a `RegressionPredictive` if the model's ``problem_type`` is "regression".

        Raises:
            SwagError: No rows, a prediction that is not finite, or a model of another task; also in another process, or other rows there.
        """
        if return_draws and self.max_error is not None:
            raise SwagError("return_draws needs as many draws for every row; leave max_error out, or return_draws.")
        if isinstance(data, Mapping):
            return self._with_labels(self._predict_batch(data, return_draws)[0])
        processes = Processes.of_this_run() if self.across_processes else Processes()
        rows = processes.assert_identical(lambda: self._rows(data), self._digests, advice=_ADVICE)
        batches, _ = batches_of_one_length(rows, self.batch_size)
        mine = processes.partition([len(batch) * max(1, length_of(rows[batch[0]])) for batch in batches])
        shown = tqdm(mine, desc="Predicting", delay=2, disable=not self.progress or processes.index > 0)
        predicted = processes.all_gather(
            lambda: [
                (number, self._predict_batch(self._collate([rows[index] for index in batches[number]]), return_draws))
                for number in shown
            ]
        )
        by_number = dict(itertools.chain.from_iterable(predicted))
        parts = [by_number[number][0] for number in range(len(batches))]
        places = [np.asarray(batch)[by_number[number][1]] for number, batch in enumerate(batches)]
        return self._with_labels(type(parts[0]).from_batches(parts, _event_order(places)))

    def predict_rows(self, batch: Mapping[str, Any]) -> list[Predictive | RegressionPredictive]:
        """Predict a batch, and return the prediction of each row (of all its events) as one of its own, as a pipeline needs it."""
        inputs = self._logits.tensors(batch)
        num_rows = len(next(iter(inputs.values())))
        if self.max_error is None:
            logits, rows = self._logits(inputs)
            predicted = [self.summary(logits[:, rows == row]) for row in range(num_rows)]
        else:
            whole, places = self._predict_within_error(inputs)
            predicted = [whole.select(places == row) for row in range(num_rows)]
        if self._ood_scores is None or not isinstance(predicted[0], Predictive):
            return predicted
        scores, rows = self._ood_scores(inputs), self.task.events(inputs).numpy()
        return [replace(one, ood_score=scores[rows == row]) for row, one in enumerate(predicted)]

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the logits of every draw for one batch; with ``max_error``, of the first block. Shape (S, E, C), CPU, float32.

        E counts the events of the batch, usually its B rows. With ``method="linearized"`` they are the 1,024 draws of logits.

        Raises:
            SwagError: They are not finite, or not those of the task.
        """
        return self._logits(self._logits.tensors(batch))[0]

    def summary(self, logits: Tensor, *, keep_draws: bool = False) -> Predictive | RegressionPredictive:
        """Return the prediction for logits under these draws: what `logits` returns, or others made of them. Shape (S, N, C)."""
        averaging = self._logits.averaging(len(logits)) | {"keep_draws": keep_draws}
        return summarise(
            logits, self.link, temperature=self.temperature, members=self._logits.members(len(logits)), **averaging
        )

    def __repr__(self) -> str:
        """What is drawn from, and how."""
        how = f"{self.sampling.num_samples} {self.sampling.design} draws, seed {self.sampling.seed}, scale {self.scale:g}"
        how = "one pass" if self.scale == 0 and not self.sampling.dropout else how + ", dropout" * bool(self.sampling.dropout)
        center, task = self.sampling.center or "mean", self.task.name
        return f"MonteCarloPredictor({self._posterior.title}, {how}, around the {center}, temperature {self.temperature:.3g}, task {task!r})"

    def _with_labels(self, predictive: Predictive | RegressionPredictive) -> Predictive | RegressionPredictive:
        labels = self._posterior.record.labels
        if labels is None or isinstance(predictive, RegressionPredictive) or len(labels) != predictive.probabilities.shape[1]:
            return predictive
        return replace(predictive, labels=tuple(labels))

    def _check_temperature(self) -> None:
        if self.link == "identity" and self.temperature != 1:
            raise SwagError(
                f"A regression has no temperature, got {self.temperature}: its outputs do not become probabilities."
            )

    def _rows(self, data: Any) -> list[dict[str, Any]]:
        # By index where there is a length: a torch Dataset need not say where it ends otherwise.
        source = (data[index] for index in range(len(data))) if hasattr(data, "__len__") else data
        rows = [self._logits.columns(row) for row in source]
        if not rows:
            raise SwagError("predict() got a data set without rows.")
        return rows

    def _digests(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        """What processes that predict together must have in common."""
        one_draw = self._posterior.draw(1, seed=0, scale=1.0).vectors  # depends on every parameter of the posterior
        limits = (self.num_blocks, self.max_error or 0.0, self.batch_size)
        return {
            "the rows": digest(rows),
            "the posterior's weights": digest(self._posterior.center(self.sampling.center or "mean"), one_draw),
            "the settings": digest(self.task.name, self.method, *astuple(self.sampling), *limits),
        }

    def _predict_batch(
        self, batch: Mapping[str, Any], keep_draws: bool
    ) -> tuple[Predictive | RegressionPredictive, np.ndarray]:
        """Return the prediction for a batch, and which row each of its events belongs to. Shape (E,)."""
        inputs = self._logits.tensors(batch)
        if self.max_error is not None:
            predictive, rows = self._predict_within_error(inputs)
        else:
            logits, events = self._logits(inputs)
            predictive, rows = self.summary(logits, keep_draws=keep_draws), events.numpy()
        if self._ood_scores is not None and isinstance(predictive, Predictive):
            predictive = replace(predictive, ood_score=self._ood_scores(inputs))
        return predictive, rows

    def _predict_within_error(self, inputs: dict[str, Tensor]) -> tuple[Predictive | RegressionPredictive, np.ndarray]:
        """As `_predict_batch`, each row with as many blocks as it needs; that number depends on the row's own predictions alone."""
        logits, rows = self._logits(inputs, 0)
        num_rows = len(next(iter(inputs.values())))
        parts, finished = [], []
        for block in range(1, self.num_blocks + 1):
            limit = error_limit(apply_link(logits, self.link, self.temperature), **self._logits.averaging(len(logits)))
            is_open = torch.zeros(num_rows, dtype=torch.bool)
            if block < self.num_blocks:
                is_open[rows[~(limit <= self.max_error)]] = True
            done = ~is_open[rows]
            if done.any() or not len(done):
                parts.append(self.summary(logits[:, done]))
                finished.append(rows[done].numpy())
            if done.all():
                break
            logits, rows = logits[:, ~done], rows[~done]
            places = rows.unique()
            more, _ = self._logits({name: value[places.to(value.device)] for name, value in inputs.items()}, block)
            logits = torch.cat([logits, with_classes(more, logits.shape[-1])])
        return type(parts[0]).from_batches(parts, _event_order(finished)), np.sort(np.concatenate(finished))


def _event_order(rows: list[np.ndarray]) -> np.ndarray:
    """Return the place of each event among all events, which are in the order of their rows, from the rows of each batch's events."""
    return np.argsort(np.argsort(np.concatenate(rows), kind="stable"), kind="stable")


def _check_at_least_1(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise SwagError(f"{name} must be at least 1, got {number}.")
