"""MonteCarloPredictor: model x posterior x data -> averaged answers."""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import default_data_collator

from swag_trainer.adapters.initialisation import check_base
from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.weights import private_copy
from swag_trainer.distributed import Processes, digest
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.gaussian import checked_scale
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.prediction.lengths import batches_of_one_length, length_of, rows_of_one_length
from swag_trainer.prediction.linearized import LOGIT_DRAWS, LinearizedSampler
from swag_trainer.prediction.monte_carlo import block_seed, error_limit
from swag_trainer.prediction.packed.sampler import PackedSampler
from swag_trainer.prediction.predictive import Predictive, RegressionPredictive, answers, link_of, summarise
from swag_trainer.prediction.sequential import SequentialSampler

Method = Literal["monte_carlo", "linearized"]

_LABELS = {"label", "labels", "label_ids"}
_MOST_BLOCKS = 10


class MonteCarloPredictor:
    """Averages the answers of weights drawn from a posterior.

    The draws are made once and serve every call, so the answer for a row depends neither on its batch nor on the order. They go
    into a private copy of the adapter that shares the base model's tensors: the model itself is never written, and may answer
    plain forwards meanwhile. Calls from several threads wait for each other. Many draws are answered in one forward where the adapter
    allows it (`PackedSampler`), and otherwise one after the other; the answers are the same.

    Args:
        model: The PEFT model, on the device to predict on.
        posterior: The posterior of its active adapter.
        num_samples: How many draws.
        seed: The draws depend on this and on nothing else.
        scale: Factor of the covariance; None for the posterior's own, 0 for one pass at the mean (SWA).
        temperature: What each draw's logits are divided by before they become probabilities; not for a regression. None for the one that
            `SwagPosterior.tune` chose, which belongs to the posterior's own scale: 1 at any other, or where it was not tuned.
        design: "matched" (10 draws do the work of 30 independent ones) or "iid".
        num_blocks: How many independent blocks of ``num_samples`` draws, one by default. The Monte-Carlo standard error of matched draws
            can be told from two blocks or more; one block of S draws is more exact than two of S / 2.
        max_error: Go on drawing blocks for a row until, with 95 % confidence, the standard error of each of its probabilities (of its
            outputs, in a regression) is below this, up to ``num_blocks``, which is then 10 by default; a row that has all of them in its
            ``num_draws`` may be further off. The confidence is that of a single look at a row, by a limit that takes the blocks'
            means for normal; it is not a promise for all rows at once, and says nothing of how well the posterior itself fits.
        method: "monte_carlo" draws weights. "linearized" takes the model as linear in its weights around the mean, which makes the logits
            normal in closed form, see `LinearizedSampler`: one forward and a backward pass for each class, for few classes. Then
            ``num_samples`` and ``design`` say nothing: rows are averaged over 1,024 draws of their logits. Its answers have a bias,
            which grows with the posterior's width and is no Monte-Carlo error.
        adapter_name: The adapter's name, if another than the active one is a mistake.
        batch_size: Rows per forward when a data set is given.
        data_collator: Makes a batch of rows; the default takes rows as tokenizers make them.
        progress: Show a bar when a data set takes more than two seconds.
        across_processes: Under ``torchrun`` or ``accelerate launch``, share the rows of a data set among the processes; each of them
            has to call `predict`, and gets all answers. False: each process answers what it was given, and need not be in step.
        max_tokens: Most draws x rows x tokens in one forward; None for 1,024 on a CPU and what the memory holds on a GPU.
        compile: Run forwards through ``torch.compile``: for GPUs and many batches of few shapes.

    Raises:
        AdapterMismatchError: The posterior has other weights than the adapter.
        SwagError: A number is out of range, a setting does not go with the method, or the adapter is merged, switched off or not active.
    """

    def __init__(
        self,
        model: nn.Module,
        posterior: SwagPosterior,
        *,
        num_samples: int = 10,
        seed: int = 0,
        scale: float | None = None,
        temperature: float | None = None,
        design: Design = "matched",
        num_blocks: int | None = None,
        max_error: float | None = None,
        method: Method = "monte_carlo",
        adapter_name: str | None = None,
        batch_size: int = 32,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
        progress: bool = True,
        across_processes: bool = True,
        max_tokens: int | None = None,
        compile: bool = False,
    ) -> None:
        _check_at_least_1(num_blocks=num_blocks, batch_size=batch_size, max_tokens=max_tokens)
        if max_error is not None and not 0 < max_error < float("inf"):
            raise SwagError(f"max_error is a standard error to stay below and must be finite and > 0, got {max_error}.")
        if method not in get_args(Method):
            raise SwagError(f"method must be one of {get_args(Method)}, got {method!r}.")
        if method == "linearized" and (compile or max_error is not None or num_blocks not in (None, 1)):
            raise SwagError(
                'method="linearized" draws no weights: num_blocks, max_error and compile are for method="monte_carlo".'
            )
        self.method = method
        self.num_samples = num_samples
        self.seed = seed
        self.scale = posterior.scale if scale is None else checked_scale(scale)
        self.temperature = temperature_of(posterior, scale=self.scale, temperature=temperature)
        self.batch_size = batch_size
        self.progress = progress
        self.across_processes = across_processes
        self._collate = data_collator
        # At scale 0 every draw is the mean: one pass, no Monte-Carlo error, and a mutual information of exactly 0.
        self.max_error = None if self.scale == 0 else max_error
        self.num_blocks = 1 if self.scale == 0 else num_blocks or (1 if max_error is None else _MOST_BLOCKS)
        self._draws_per_block = 1 if design == "iid" or self.scale == 0 else num_samples
        self._posterior = posterior
        self._design = design
        with torch.inference_mode(False):  # tensors made in inference mode would never have derivatives
            weights = private_copy(model, adapter_name, posterior.layout.keys)
        difference = posterior.layout.difference(weights.layout, ours="The posterior", theirs="The adapter")
        if difference:
            raise AdapterMismatchError(f"The posterior is of another adapter than the model's. {difference}")
        if posterior.record.base_fingerprint:
            check_base(weights.model, weights.adapter_name, posterior.record.base_fingerprint)
        self._device = weights.parameters()[0].device
        self._blocks: list[Tensor] = []
        if method == "linearized" and self.scale > 0:
            self._draws_per_block = LOGIT_DRAWS
            self._forward = LinearizedSampler(weights, posterior.gaussian, scale=self.scale, seed=seed)
        else:
            self._draw_blocks(self.num_blocks if self.max_error is None else 1)
            draws = self._blocks[0] if len(self._blocks) == 1 else torch.cat(self._blocks)
            if len(draws) > 1:
                self._forward = PackedSampler(weights, draws, max_tokens=max_tokens, compile=compile)
            else:
                self._forward = SequentialSampler(weights, draws)
        base = base_model(weights.model)
        self._inputs = set(inspect.signature(base.forward).parameters) - _LABELS
        self.link = link_of(getattr(base.config, "problem_type", None), getattr(base.config, "num_labels", 2))
        if self.link == "identity" and self.temperature != 1:
            raise SwagError(
                f"A regression has no temperature, got {self.temperature}: its outputs do not become probabilities."
            )
        self._lock = threading.Lock()

    def predict(self, data: Any, *, return_draws: bool = False) -> Predictive | RegressionPredictive:
        """Answer for a data set or a batch.

        Args:
            data: A batch (a mapping of tensors, as a tokenizer returns it with ``return_tensors="pt"``), or a data set: a sequence of
                rows as the Trainer takes them. Labels and columns that the model does not know are left out. The processes of a
                launched run share the batches of a data set, which are those that one process would make: on equal machines, with as
                many threads each, the answers are the same bit for bit. Each process answers a batch by itself.
            return_draws: Keep each draw's answer as well; not with ``max_error``, where rows differ in how many they have.

        Returns:
            A `Predictive`, or a `RegressionPredictive` if the model's ``problem_type`` is "regression".

        Raises:
            SwagError: No rows, or an answer that is not finite; also in another process, or other rows there.
        """
        if return_draws and self.max_error is not None:
            raise SwagError("return_draws needs as many draws for every row; leave max_error out, or return_draws.")
        if isinstance(data, Mapping):
            return self._answer(data, return_draws)
        processes = Processes.of_this_run() if self.across_processes else Processes()
        rows = processes.assert_identical(
            lambda: self._rows(data),
            self._digests,
            advice="Call predict() in every process with the whole data set, and MonteCarloPredictor with the same posterior and "
            "settings; or pass across_processes=False to it, and each process predicts what it was given.",
        )
        batches, order = batches_of_one_length(rows, self.batch_size)
        mine = processes.partition([len(batch) * max(1, length_of(rows[batch[0]])) for batch in batches])
        shown = tqdm(mine, desc="Predicting", delay=2, disable=not self.progress or processes.index > 0)
        answered = processes.all_gather(
            lambda: [
                (number, self._answer(self._collate([rows[index] for index in batches[number]]), return_draws))
                for number in shown
            ]
        )
        parts = dict(itertools.chain.from_iterable(answered))
        return type(parts[0]).from_batches([parts[number] for number in range(len(batches))], order)

    def _rows(self, data: Any) -> list[dict[str, Any]]:
        # By index where there is a length: a torch Dataset need not say where it ends otherwise.
        source = (data[index] for index in range(len(data))) if hasattr(data, "__len__") else data
        rows = [{name: value for name, value in row.items() if name in self._inputs} for row in source]
        if not rows:
            raise SwagError("predict() got a data set without rows.")
        return rows

    def _digests(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        """What processes that answer together must have in common."""
        gaussian, limits = self._posterior.gaussian, (self.num_blocks, self.max_error or 0.0)
        numbers = (
            self.method,
            self.num_samples,
            self.seed,
            self.scale,
            self._design,
            self.temperature,
            *limits,
            self.batch_size,
        )
        return {
            "the rows": digest(rows),
            "the posterior's weights": digest(gaussian.mean, gaussian.variance),
            "the settings": digest(*numbers),
        }

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the logits of every draw for one batch; with ``max_error``, of the first block. Shape (S, B, C), CPU, float32.

        With ``method="linearized"`` they are the 1,024 draws of logits.

        Padding on the right is taken off and rows of one length answered together: with padding the float32 sums of attention run
        in another order, and answers of MiniLM differed by up to 7e-6 in the logits between one batch and another, 1e-6 without.

        Raises:
            SwagError: They are not finite.
        """
        return self._logits(self._tensors(batch))

    def _tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {name: value for name, value in batch.items() if name in self._inputs and isinstance(value, Tensor)}

    def _logits(self, inputs: dict[str, Tensor], block: int | None = None) -> Tensor:
        groups = rows_of_one_length(inputs)
        with self._lock:
            draws = None
            if block is not None:
                self._draw_blocks(block + 1)
                draws = self._blocks[block]
            parts = [
                self._forward({name: value.to(self._device) for name, value in part.items()}, draws).float().cpu()
                for _, part in groups
            ]
        logits = torch.empty(parts[0].shape[0], sum(part.shape[1] for part in parts), parts[0].shape[2])
        for (rows, _), part in zip(groups, parts, strict=True):
            logits[:, rows] = part
        if not torch.isfinite(logits).all():
            raise SwagError(
                "A draw of the weights gave NaN or infinite logits. Is the scale too large, or the base model's precision too low?"
            )
        return logits

    def _draw_blocks(self, count: int) -> None:
        while len(self._blocks) < count:
            seed = block_seed(self.seed, len(self._blocks))
            draws = self._posterior.draw(self.num_samples, seed=seed, scale=self.scale, design=self._design).vectors
            self._blocks.append(draws[: 1 if self.scale == 0 else None].to(self._device))

    def _answer(self, batch: Mapping[str, Any], return_draws: bool) -> Predictive | RegressionPredictive:
        inputs = self._tensors(batch)
        if self.max_error is None:
            logits = self._logits(inputs)
            return self._summary(logits, keep_draws=return_draws)
        return self._answer_within_error(inputs)

    def _summary(self, logits: Tensor, *, keep_draws: bool = False) -> Predictive | RegressionPredictive:
        return summarise(
            logits, self.link, temperature=self.temperature, keep_draws=keep_draws, draws_per_block=self._draws_per_block
        )

    def _answer_within_error(self, inputs: dict[str, Tensor]) -> Predictive | RegressionPredictive:
        """Answer each row with as many blocks as it needs; a row's number depends on its own answers alone."""
        logits = self._logits(inputs, 0)
        rows = torch.arange(logits.shape[1])
        parts, order = [], []
        for block in range(1, self.num_blocks + 1):
            limit = error_limit(answers(logits, self.link, self.temperature), self._draws_per_block)
            done = (limit <= self.max_error) | (block == self.num_blocks)
            if done.any():
                parts.append(self._summary(logits[:, done]))
                order += rows[done].tolist()
            if done.all():
                break
            logits, rows = logits[:, ~done], rows[~done]
            more = self._logits({name: value[rows.to(value.device)] for name, value in inputs.items()}, block)
            logits = torch.cat([logits, more])
        return type(parts[0]).from_batches(parts, order)


def temperature_of(posterior: SwagPosterior, *, scale: float | None, temperature: float | None) -> float:
    """Return the temperature to answer with: the one asked for, or the posterior's own at the posterior's own scale, or 1.

    Raises:
        SwagError: It is not above 0, or not finite.
    """
    if temperature is None:
        return posterior.temperature if scale is None or scale == posterior.scale else 1.0
    if not 0 < temperature < float("inf"):
        raise SwagError(f"temperature divides the logits and must be finite and > 0, got {temperature}.")
    return float(temperature)


def _check_at_least_1(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise SwagError(f"{name} must be at least 1, got {number}.")
