"""Packed sampling: the logits of S weight draws, with draws and rows packed into one forward.

The base model sees S * B rows once instead of B rows S times, and the low-rank part of an adapted layer is one batched product over
views of the one (S, P) matrix of draws. It happens in the predictor's private copy of the model, where the ``forward`` of the modules
concerned is replaced. There is no list of architectures: a trace shows where the rows are, and the first batch is the proof.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.dropout import DropoutMasks, masked
from swag_trainer.prediction.packed.accelerate_internals import is_offloaded
from swag_trainer.prediction.packed.batched import packed_forward
from swag_trainer.prediction.packed.chunks import Chunks
from swag_trainer.prediction.packed.onednn import onednn_forward, onednn_layers
from swag_trainer.prediction.packed.prefix_cache import PrefixCache, fixed_modules
from swag_trainer.prediction.packed.pruning import at_one_position, prunable_modules
from swag_trainer.prediction.packed.sampled_modules import (
    NotPacked,
    Packing,
    SampledModule,
    promote_to_parent,
    sampled_modules,
)
from swag_trainer.prediction.packed.torch_internals import hooks_of, parameters_of, replaced_forward, restore_forward
from swag_trainer.prediction.packed.tracing import Trace, trace_calls
from swag_trainer.prediction.sequential import SequentialSampler
from swag_trainer.tasks import task_named
from swag_trainer.tasks.base import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Strategy:
    """What is not computed.

    Attributes:
        cache_prefix: For each draw, what is the same for all.
        prune: Positions that the logits do not depend on.
    """

    cache_prefix: bool
    prune: bool


@dataclass(frozen=True)
class _Plain:
    """The plain model on the first row of a batch that has events, which all strategies are proved by.

    Attributes:
        trace: How it ran.
        row: The row.
        logits: The logits of the row's events. Shape (E, C).
        sampled: The modules to run for S draws at once.
        num_rows: How many rows the model was given for it.
    """

    trace: Trace
    row: Mapping[str, Tensor]
    logits: Tensor
    sampled: Sequence[SampledModule]
    num_rows: int


class PackedSampler:
    """Logits of S draws for a batch, many draws in one forward. Not for several threads at once.

    The first row of the first batch also runs through the plain model, with the last draw, and packed logits are used only where they
    agree. Where they differ, and wherever anything else prevents it, the draws run one after the other; a line at INFO gives the reason,
    once. The first batch costs about four forwards of one row more than later ones.

    Args:
        weights: The weights in a private copy of the model, which is written to.
        draws: Shape (S, P), on the model's device.
        task: What of the model's outputs is predicted; default: sequence classification.
        masks: Those of the draws; None without dropout.
        max_tokens: Bounds one forward, see `Chunks`.
        compile: Run the packed forward through ``torch.compile``; there is then no prefix cache.

    Attributes:
        obstacle: Why draws run one after the other; None as long as they are packed.
    """

    def __init__(
        self,
        weights: AdapterWeights,
        draws: Tensor,
        *,
        task: Task | None = None,
        masks: DropoutMasks | None = None,
        max_tokens: int | None = None,
        compile: bool = False,
    ) -> None:
        self._weights = weights
        self._task = task_named(None) if task is None else task
        self._constants = self._task.constants(weights.model)
        self._draws = draws
        self._sequential = SequentialSampler(weights, draws, task=self._task, masks=masks)
        self._chunks = Chunks(max_tokens)
        self._masks = masks
        self._packing = Packing(masks=masks)
        self._model = torch.compile(weights.model) if compile else weights.model
        self._strategies = [_Strategy(cache_prefix=False, prune=False)]
        if not compile:
            prefix = [_Strategy(cache_prefix=True, prune=True), _Strategy(cache_prefix=True, prune=False)]
            self._strategies = [*prefix, *self._strategies]
        self._prefix: PrefixCache | None = None
        self._prepared_for: object = None
        self._forwards = [(module, replaced_forward(module)) for module in weights.model.modules()]
        own = {id(parameter) for parameter in weights.parameters()}
        self._places = [
            (parameters_of(module), name, parameter)
            for module in weights.model.modules()
            for name, parameter in parameters_of(module).items()
            if id(parameter) in own
        ]
        self.obstacle: str | None = None
        if reason := self.supports(weights):
            self._give_up(reason)
        for module in weights.model.modules():
            if getattr(getattr(module, "config", None), "use_cache", False):
                module.config.use_cache = False  # it is not read, and would hold keys and values of S * B rows

    @staticmethod
    def supports(weights: AdapterWeights) -> str | None:
        """Return what about the adapter or the model cannot be packed; None if nothing that shows without a batch."""
        try:
            sampled_modules(weights)
        except NotPacked as problem:
            return str(problem)
        parameters = list(weights.model.parameters())
        if any(hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh") for parameter in parameters):
            return "the model is sharded"
        devices = sorted({str(parameter.device) for parameter in parameters})
        if len(devices) > 1 or devices == ["meta"]:
            return f"the model is spread over {', '.join(devices)}"
        return _hook_of_the_user(weights.model)

    def __call__(self, batch: Mapping[str, Tensor], draws: Tensor | None = None) -> Tensor:
        """Return the logits of every draw. Shape (S, E, C) for E events, on the model's device.

        Args:
            batch: What the model takes: tensors with the rows in their first dimension.
            draws: Other draws than those this was made with. Shape (S', P).
        """
        draws = self._draws if draws is None else draws
        for parameters, name, parameter in self._places:
            parameters[name] = parameter  # functional_call puts them back in a finally, which an interrupt may cut short
        reason = self.obstacle
        if reason is None:
            try:
                # Not in inference mode, whose tensors do not tell when they are written to (see `PrefixCache`).
                with torch.inference_mode(False), torch.no_grad():
                    return self._checked(
                        {name: value.clone() if value.is_inference() else value for name, value in batch.items()}, draws
                    )
            except torch.OutOfMemoryError:
                raise
            except Exception as problem:  # the plain forward, below, may do without
                reason = reason_of(problem)
        self._packing.mode = "plain"
        self._restore()
        logits = self._sequential(batch, draws)  # raises where the batch is at fault
        if self.obstacle is None:
            self._give_up(reason)
        return logits

    def _checked(self, batch: Mapping[str, Tensor], draws: Tensor) -> Tensor:
        """Packed logits, proved first if a batch of this kind has not been seen before."""
        kind = sorted((name, value.ndim) for name, value in batch.items())
        if kind == self._prepared_for:
            try:
                logits = self._run(batch, draws)
            except NotPacked:
                pass  # a module was called in another way than before, without a mask, say: trace again
            else:
                if not self._strategies[0].prune or torch.isfinite(logits).all():
                    return logits
                self._strategies = self._strategies[1:]  # a position that was left out was read
        events = self._task.events(batch)
        if len(events) == 0:  # which prove nothing
            self._restore()
            return self._sequential(batch, draws)
        first = int(events.min())
        plain = self._trace(batch, first, draws)
        reason = ""
        for strategy in self._strategies:
            try:
                with masked(self._masks, range(len(draws) - 1, len(draws)), plain.row):
                    self._replace_forwards(plain, strategy)
                logits = self._run(batch, draws)
            except torch.OutOfMemoryError:
                raise
            except Exception as problem:  # what an architecture does with S * B rows is its own business
                reason = reason_of(problem)
                continue
            found = logits[-1, (events == first).to(logits.device)]
            if strategy.prune and not torch.isfinite(logits).all():
                reason = "the logits of a row depend on another position than those of the first row"
            elif _agree(found, plain.logits):
                if reason and not strategy.cache_prefix:
                    logger.info("What comes before the adapter is computed for each draw: %s.", reason)
                self._strategies = self._strategies[self._strategies.index(strategy) :]
                self._prepared_for = kind
                return logits
            else:
                reason = f"packed logits differ by {float((found - plain.logits).abs().max()):.1e} from plain ones"
        raise NotPacked(reason)

    def _trace(self, batch: Mapping[str, Tensor], first: int, draws: Tensor) -> _Plain:
        """Run the plain model on the first row that has events, with the last draw."""
        if len({len(value) for value in batch.values()}) != 1:
            raise NotPacked("the inputs do not all have the rows in their first dimension")
        self._restore()
        model = self._weights.model
        with torch.inference_mode():  # as the copy may have been made in inference mode, and its tensors then be of that kind
            self._weights.write(self._weights.layout.unflatten(draws[-1]))
        row = {name: value[first : first + 1] for name, value in batch.items()}
        with masked(self._masks, range(len(draws) - 1, len(draws)), row):
            inputs = self._task.inputs(row)
            num_rows = _num_rows(inputs)
            trace = trace_calls(model, inputs, self._constants)
            # Of several rows, such as those of a question's choices, the first one is traced.
            outputs = trace.outputs if num_rows == 1 else model(**inputs, **self._constants)
        largest = max(call.size for made in trace.calls.values() for call in made)
        # A block holds about eight tensors of the size of its largest at once.
        self._bytes_per_token = 8 * largest * num_rows * len(next(iter(batch.values()))) // self._task.tokens(batch, model)
        sampled = promote_to_parent(model, sampled_modules(self._weights), trace.calls)
        logits = self._task.read(outputs, row)
        self._task.check_logits(logits, row, model)
        return _Plain(trace, row, logits, sampled, num_rows)

    def _replace_forwards(self, plain: _Plain, strategy: _Strategy) -> None:
        self._restore()
        model, calls = self._weights.model, plain.trace.calls
        pruned, position = [], 0
        if strategy.prune and plain.num_rows == 1:
            pruned, position = prunable_modules(
                plain.trace,
                lambda: self._task.read(model(**self._task.inputs(plain.row), **self._constants), plain.row),
                plain.logits,
                whole=[item.module for item in plain.sampled],
                repeating=nullcontext if self._masks is None else self._masks.repeating,
            )
        fixed = list(fixed_modules(model, plain.sampled, calls, self._masks))
        for layer in onednn_layers(model, plain.sampled):
            layer.forward = onednn_forward(layer, self._packing)
        for item in plain.sampled:
            item.module.forward = packed_forward(item, self._packing, calls[item.module])
        for module in pruned:
            module.forward = at_one_position(module.forward, position)
        if strategy.cache_prefix:
            self._prefix = PrefixCache(self._packing, calls)
            for module in fixed:
                module.forward = self._prefix.cached(module)

    def _run(self, batch: Mapping[str, Tensor], draws: Tensor) -> Tensor:
        if self._prefix is not None:
            inputs = self._task.inputs(batch)
            with masked(self._masks, range(0), batch):
                self._prefix.record(lambda: self._model(**inputs, **self._constants), num_rows=_num_rows(inputs))
        predict = functools.partial(self._run_chunk, batch)
        tokens = self._task.tokens(batch, self._weights.model)
        return self._chunks.run(predict, draws, tokens=tokens, bytes_per_token=self._bytes_per_token)

    def _run_chunk(self, batch: Mapping[str, Tensor], draws: Tensor, first: int) -> Tensor:
        copies = {name: value.repeat(len(draws), *[1] * (value.ndim - 1)) for name, value in batch.items()}
        inputs = self._task.inputs(copies)
        self._packing.begin(len(draws), _num_rows(inputs) // len(draws), self._weights.layout.unflatten(draws))
        if self._prefix is not None:
            self._prefix.restart()
        with masked(self._masks, range(first, first + len(draws)), batch):
            outputs = self._model(**inputs, **self._constants)
        logits = self._task.read(outputs, copies)
        num_events = len(self._task.events(batch))
        if len(logits) != len(draws) * num_events:
            raise NotPacked(f"{len(draws)} draws of {num_events} events gave {len(logits)} rows of logits")
        return logits.unflatten(0, (len(draws), num_events))

    def _restore(self) -> None:
        self._prepared_for, self._prefix = None, None
        # Of all modules, not only of those known to be changed: an interrupt may have come between a change and a note of it.
        for module, forward in self._forwards:
            restore_forward(module, forward)

    def _give_up(self, reason: str) -> None:
        self.obstacle = reason
        logger.info("Draws run one after the other, as they cannot be packed: %s.", reason)


def _num_rows(inputs: Mapping[str, object]) -> int:
    """Return how many rows a model is given."""
    counts = {len(value) for value in inputs.values() if isinstance(value, Tensor)}
    if len(counts) != 1:
        raise NotPacked("the model's inputs do not all have the rows in their first dimension")
    return counts.pop()


def reason_of(problem: Exception) -> str:
    """Return why draws could not be packed, for a log line."""
    return str(problem) if isinstance(problem, NotPacked) else f"{type(problem).__name__}: {problem}"


def _agree(packed: Tensor, plain: Tensor) -> bool:
    """Whether logits differ by rounding only; those of another draw or another row are further away."""
    tolerance = 1e-3 if plain.dtype in (torch.float32, torch.float64) else 5e-2
    return torch.allclose(packed, plain, rtol=tolerance, atol=tolerance, equal_nan=True)


def _hook_of_the_user(model: nn.Module) -> str | None:
    """A hook of the user's own may count on the rows of the batch; those of the libraries do not look at rows."""
    for name, module in model.named_modules():
        for hook in hooks_of(module):
            origin = getattr(hook, "__module__", None) or type(hook).__module__
            if origin.partition(".")[0] not in ("transformers", "peft", "accelerate", "torch", "swag_trainer"):
                return f"{name!r} has a forward hook of {origin}"
        if is_offloaded(module):
            return f"{name!r} is offloaded"
    return None
