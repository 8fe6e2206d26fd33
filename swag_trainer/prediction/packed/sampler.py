"""The fast way to the logits of S draws: draws and rows packed into one forward.

The base model sees S * B rows once instead of B rows S times, and the low-rank part of an adapted layer is one batched product over
views of the one (S, P) matrix of draws. It happens in the predictor's private copy of the model, where the ``forward`` of the modules
concerned is replaced. Nothing here has heard of an architecture: `watch` tells where the rows are, and the first batch is the proof.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.packed.batched import packed_forward
from swag_trainer.prediction.packed.chunks import Chunks
from swag_trainer.prediction.packed.onednn import onednn_forward, onednn_layers
from swag_trainer.prediction.packed.prefix_cache import PrefixCache, fixed_modules
from swag_trainer.prediction.packed.pruning import at_one_position, prunable_modules
from swag_trainer.prediction.packed.sampled_modules import NotPacked, Packing, promote_to_parent, sampled_modules
from swag_trainer.prediction.packed.tracing import watch
from swag_trainer.prediction.sequential import SequentialSampler
from swag_trainer.tasks import task_named
from swag_trainer.tasks.base import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Way:
    """What is spared: computing for each draw what is the same for all, and positions that nobody reads."""

    share: bool
    prune: bool


class PackedSampler:
    """Logits of S draws for a batch, many draws in one forward. Not for several threads at once.

    The first batch is also answered plainly, its first row with the last draw, before packed answers are believed. Where they differ,
    and wherever anything else is in the way, the draws are answered one after the other; a line at INFO says why, once.

    Args:
        weights: The weights in a private copy of the model, which is written to.
        draws: Shape (S, P), on the model's device.
        task: What of the model's outputs is predicted; default: sequence classification.
        max_tokens: Bounds one forward, see `Chunks`.
        compile: Run the packed forward through ``torch.compile``; nothing is then shared between draws.

    Attributes:
        obstacle: Why draws are answered one after the other; None as long as they are packed.
    """

    def __init__(
        self,
        weights: AdapterWeights,
        draws: Tensor,
        *,
        task: Task | None = None,
        max_tokens: int | None = None,
        compile: bool = False,
    ) -> None:
        self._weights = weights
        self._task = task_named(None) if task is None else task
        self._constants = self._task.constants(weights.model)
        self._draws = draws
        self._sequential = SequentialSampler(weights, draws, task=self._task)
        self._chunks = Chunks(max_tokens)
        self._packing = Packing()
        self._model = torch.compile(weights.model) if compile else weights.model
        self._strategies = [_Way(share=False, prune=False)]
        if not compile:
            self._strategies = [_Way(share=True, prune=True), _Way(share=True, prune=False), *self._strategies]
        self._prefix: PrefixCache | None = None
        self._prepared_for: object = None
        self._forwards = [(module, module.__dict__.get("forward")) for module in weights.model.modules()]
        own = {id(parameter) for parameter in weights.parameters()}
        self._places = [
            (module._parameters, name, parameter)
            for module in weights.model.modules()
            for name, parameter in module._parameters.items()
            if id(parameter) in own
        ]
        self.obstacle: str | None = None
        if reason := self.supports(weights):
            self._give_up(reason)
        for module in weights.model.modules():
            if getattr(getattr(module, "config", None), "use_cache", False):
                module.config.use_cache = False  # nobody reads it, and S * B rows of keys and values are kept in it

    @staticmethod
    def supports(weights: AdapterWeights) -> str | None:
        """Say what about the adapter or the model cannot be packed; None if nothing that shows without a batch."""
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
        return _foreign_hook(weights.model)

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
            except Exception as problem:  # one that the plain forward, below, does not have is no reason not to answer
                reason = _reason(problem)
        self._packing.mode = "plain"
        self._restore()
        logits = self._sequential(batch, draws)  # raises by itself where the batch is at fault
        if self.obstacle is None:
            self._give_up(reason)
        return logits

    def _checked(self, batch: Mapping[str, Tensor], draws: Tensor) -> Tensor:
        """Packed answers, proved first if a batch of this kind has not been seen before."""
        kind = sorted((name, value.ndim) for name, value in batch.items())
        if kind == self._prepared_for:
            try:
                logits = self._run(batch, draws)
            except NotPacked:
                pass  # a module was called in another way than before, without a mask, say: look again
            else:
                if not self._strategies[0].prune or torch.isfinite(logits).all():
                    return logits
                self._strategies = self._strategies[1:]  # a position that was left out was read
        reason = ""
        for way in self._strategies:
            expected = self._prepare(batch, draws[-1], way)
            try:
                logits = self._run(batch, draws)
            except torch.OutOfMemoryError:
                raise
            except Exception as problem:  # what an architecture does with S * B rows is its own business
                reason = _reason(problem)
                continue
            if way.prune and not torch.isfinite(logits).all():
                reason = "a row's answer comes from another position than the first row's"
            elif _agree(found := logits[-1, self._of_first_row(batch)], expected):
                if reason and not way.share:
                    logger.info("What comes before the adapter is computed for each draw: %s.", reason)
                self._strategies = self._strategies[self._strategies.index(way) :]
                self._prepared_for = kind
                return logits
            else:
                reason = f"packed logits differ by {float((found - expected).abs().max()):.1e} from plain ones"
        raise NotPacked(reason)

    def _prepare(self, batch: Mapping[str, Tensor], draw: Tensor, way: _Way) -> Tensor:
        """Watch the plain model, replace the forwards; returns its logits for the first row's events with one draw. Shape (E, C)."""
        if len({len(value) for value in batch.values()}) != 1:
            raise NotPacked("the inputs do not all have the rows in their first dimension")
        self._restore()
        model = self._weights.model
        with torch.inference_mode():  # as the copy may have been made in inference mode, and its tensors then be of that kind
            self._weights.write(self._weights.layout.unflatten(draw))
        row = {name: value[:1] for name, value in batch.items()}
        calls, outputs = watch(model, batch, self._constants)
        plain = self._task.read(outputs, row)
        drawn = promote_to_parent(model, sampled_modules(self._weights), calls)
        pruned, position = [], 0
        if way.prune:
            pruned, position = prunable_modules(
                model,
                calls,
                lambda: self._task.read(model(**row, **self._constants), row),
                plain,
                whole=[item.module for item in drawn],
            )
        fixed = list(fixed_modules(model, drawn, calls))
        for layer in onednn_layers(model, drawn):
            layer.forward = onednn_forward(layer, self._packing)
        for item in drawn:
            item.module.forward = packed_forward(item, self._packing, calls[item.module])
        for module in pruned:
            module.forward = at_one_position(module.forward, position)
        if way.share:
            self._prefix = PrefixCache(self._packing, calls)
            for module in fixed:
                module.forward = self._prefix.shared(module)
        largest = max(call.size for seen in calls.values() for call in seen)
        # A block holds about eight tensors of the size of its largest at once.
        self._bytes_per_token = 8 * largest * len(next(iter(batch.values()))) // self._task.tokens(batch, model)
        return plain

    def _run(self, batch: Mapping[str, Tensor], draws: Tensor) -> Tensor:
        if self._prefix is not None:
            self._prefix.record(lambda: self._model(**batch, **self._constants), num_rows=len(next(iter(batch.values()))))
        answer = functools.partial(self._run_chunk, batch)
        tokens = self._task.tokens(batch, self._weights.model)
        return self._chunks.run(answer, draws, tokens=tokens, bytes_per_token=self._bytes_per_token)

    def _run_chunk(self, batch: Mapping[str, Tensor], draws: Tensor) -> Tensor:
        num_rows = len(next(iter(batch.values())))
        self._packing.begin(len(draws), num_rows, self._weights.layout.unflatten(draws))
        if self._prefix is not None:
            self._prefix.restart()
        copies = {name: value.repeat(len(draws), *[1] * (value.ndim - 1)) for name, value in batch.items()}
        logits = self._task.read(self._model(**copies, **self._constants), copies)
        num_events = len(self._task.events(batch))
        if len(logits) != len(draws) * num_events:
            raise NotPacked(f"{len(draws)} draws of {num_events} events gave {len(logits)} rows of logits")
        return logits.unflatten(0, (len(draws), num_events))

    def _of_first_row(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Which events belong to the first row. Shape (E,), bool."""
        return self._task.events(batch) == 0

    def _restore(self) -> None:
        self._prepared_for, self._prefix = None, None
        # Of all modules, not only of those known to be changed: an interrupt may have come between a change and a note of it.
        for module, forward in self._forwards:
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward

    def _give_up(self, reason: str) -> None:
        self.obstacle = reason
        logger.info("Draws are answered one after the other, as they cannot be packed: %s.", reason)


def _reason(problem: Exception) -> str:
    return str(problem) if isinstance(problem, NotPacked) else f"{type(problem).__name__}: {problem}"


def _agree(packed: Tensor, plain: Tensor) -> bool:
    """Whether two answers differ by rounding only; another draw's answer or another row's is further away."""
    tolerance = 1e-3 if plain.dtype in (torch.float32, torch.float64) else 5e-2
    return torch.allclose(packed, plain, rtol=tolerance, atol=tolerance, equal_nan=True)


def _foreign_hook(model: nn.Module) -> str | None:
    """A hook of the user's own may count on the rows it knows; those of the libraries do not look at rows."""
    for name, module in model.named_modules():
        for hook in itertools.chain(module._forward_pre_hooks.values(), module._forward_hooks.values()):
            origin = getattr(hook, "__module__", None) or type(hook).__module__
            if origin.partition(".")[0] not in ("transformers", "peft", "accelerate", "torch", "swag_trainer"):
                return f"{name!r} has a forward hook of {origin}"
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            return f"{name!r} is offloaded"
    return None
