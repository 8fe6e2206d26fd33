"""Forwards of a causal language model under S weight draws, with cached keys and values of each draw.

All draws read the same tokens: these are given, or chosen by the draws' average. So the rows lie draw by draw, as in `PackedSampler`, and
one cache holds the keys and values of all S * B rows. Layers before the first sampled weight see the same for every draw: they compute and
cache B rows, in a cache of their own.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.packed.batched import packed_forward
from swag_trainer.prediction.packed.prefix_cache import PrefixCache, fixed_modules
from swag_trainer.prediction.packed.sampled_modules import NotPacked, Packing, promote_to_parent, sampled_modules
from swag_trainer.prediction.packed.sampler import PackedSampler, reason_of
from swag_trainer.prediction.packed.torch_internals import replaced_forward, restore_forward
from swag_trainer.prediction.packed.tracing import Trace, trace_calls

logger = logging.getLogger(__name__)

_CACHE = "past_key_values"
# Two rows of so many tokens prove that packed draws compute what the plain model does; the last ones are read behind a cache.
_PROOF_LENGTH, _PROOF_STEPS = 8, 3
_KINDS = ("attention_mask", "position_ids")
# How far packed logits may be from plain ones for rounding, see `_relative_error`.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_IN_LOW_PRECISION = 5e-2


class DrawDecoder:
    """Next-token logits of S draws, for tokens behind those that a cache remembers. Not for several threads at once.

    Before the first forward two short rows run through the plain model, with the last draw, and draws are packed only where they agree.
    Where they do not, and wherever anything else prevents it, the draws run one after the other, each with a cache of its own; a line at
    INFO gives the reason, once.

    Args:
        weights: The weights in a private copy of a causal language model, which is written to.
        draws: Shape (S, P), on the model's device.

    Attributes:
        base: The language model inside the private copy.
        obstacle: Why draws run one after the other; None as long as they are packed.
        num_shared_layers: How many layers' keys and values are the same for every draw, and kept once.
    """

    def __init__(self, weights: AdapterWeights, draws: Tensor) -> None:
        self._weights, self._draws = weights, draws
        self.base: Any = base_model(weights.model)
        self._by_key = weights.layout.unflatten(draws)
        self._packing = Packing()
        self._prefix: PrefixCache | None = None
        self._prepared_for: tuple[str, ...] | None = None
        # For a cache that the caller holds: those of the other draws, or of the layers that all draws share.
        self._companions: WeakKeyDictionary[Cache, list[Cache]] = WeakKeyDictionary()
        self._forwards = [(module, replaced_forward(module)) for module in weights.model.modules()]
        self.num_shared_layers = 0
        self.obstacle = "there is one draw" if len(draws) == 1 else PackedSampler.supports(weights)
        if self.obstacle is not None and len(draws) > 1:
            self._give_up(self.obstacle)

    def new_cache(self) -> Cache:
        """Return an empty cache, which belongs to the tokens of one batch."""
        return DynamicCache(config=self.base.config.get_text_config(decoder=True))

    def __call__(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the logits of every draw. Shape (S, B, T, V); T positions, or as many as ``logits_to_keep`` asks for.

        Args:
            inputs: What the model takes, for B rows: ``input_ids`` of shape (B, T), and maybe ``attention_mask`` of shape (B, past + T),
                ``position_ids``, and ``past_key_values``, a cache that was empty at first and saw no other calls.
        """
        kind = tuple(name for name in _KINDS if inputs.get(name) is not None)
        if self.obstacle is None and kind != self._prepared_for:
            self._prepare(inputs, kind)
        return self._packed(inputs) if self.obstacle is None else self._one_by_one(inputs)

    def _one_by_one(self, inputs: Mapping[str, Any]) -> Tensor:
        cache = inputs.get(_CACHE)
        caches = [{}] * len(self._draws)
        if cache is not None:
            caches = [{_CACHE: own} for own in (cache, *self._companions_of(cache, len(self._draws) - 1))]
        logits = []
        for draw, own in zip(self._draws, caches, strict=True):
            self._write(draw)
            logits.append(self.base.forward(**{**inputs, **own})["logits"])
        return torch.stack(logits)

    def _packed(self, inputs: Mapping[str, Any]) -> Tensor:
        num_draws, num_rows, cache = len(self._draws), len(inputs["input_ids"]), inputs.get(_CACHE)
        shared = None
        if self._prefix is not None:
            shared = {} if cache is None else {_CACHE: self._companions_of(cache, 1)[0]}
            self._prefix.record(lambda: self.base.forward(**{**inputs, **shared}), num_rows=num_rows)
            self._prefix.restart()
        self._packing.begin(num_draws, num_rows, self._by_key)
        copies = {name: _copies(value, num_draws, num_rows) for name, value in inputs.items()}
        logits = self.base.forward(**copies)["logits"]
        if shared and cache is not None:
            self.num_shared_layers = _take_over(cache, shared[_CACHE])
        if len(logits) != num_draws * num_rows:
            raise NotPacked(f"{num_draws} draws of {num_rows} rows gave {len(logits)} rows of logits")
        return logits.unflatten(0, (num_draws, num_rows))

    def _companions_of(self, cache: Cache, count: int) -> list[Cache]:
        if cache not in self._companions:
            self._companions[cache] = [copy.deepcopy(cache) for _ in range(count)]
        return self._companions[cache]

    def _prepare(self, inputs: Mapping[str, Any], kind: tuple[str, ...]) -> None:
        """Replace forwards for inputs of one kind, and prove that the logits are those of the plain model."""
        self._restore()
        try:
            rows = _example(inputs["input_ids"], kind)
            is_token = rows.get("attention_mask", torch.ones_like(rows["input_ids"])).bool()
            self._write(self._draws[-1])
            plain = self.base.forward(**rows, use_cache=False)["logits"][is_token]
            trace = trace_calls(self.base, {name: value[:1] for name, value in rows.items()}, {"use_cache": False})
            reason = self._prove(trace, rows, is_token, plain, share=True)
            if reason is not None or self.num_shared_layers == 0:
                reason = self._prove(trace, rows, is_token, plain, share=False)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # what an architecture does with S * B rows is its own business
            reason = reason_of(problem)
        if reason is None:
            self._prepared_for = kind
        else:
            self._give_up(reason)

    def _prove(self, trace: Trace, rows: Mapping[str, Tensor], is_token: Tensor, plain: Tensor, *, share: bool) -> str | None:
        """Return why packed draws, with or without shared layers, do not compute what the plain model does; None where they do."""
        self._restore()
        try:
            self._replace_forwards(trace, share=share)
            cache = self.new_cache()
            pieces = in_pieces({**rows, "use_cache": True, _CACHE: cache}, [_PROOF_LENGTH - _PROOF_STEPS, _PROOF_STEPS])
            found = torch.cat([self._packed(piece)[-1] for piece in pieces], dim=1)[is_token]
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # as above
            return reason_of(problem)
        error, tolerance = _relative_error(found, plain), _TOLERANCES.get(plain.dtype, _TOLERANCE_IN_LOW_PRECISION)
        return None if error <= tolerance else f"packed logits differ by {error:.1e} of their spread from plain ones"

    def _replace_forwards(self, trace: Trace, *, share: bool) -> None:
        sampled = promote_to_parent(self.base, sampled_modules(self._weights), trace.calls)
        # Of the layers one by one: the whole decoder returns its cache, which is not copied.
        fixed = list(fixed_modules(self.base.base_model, sampled, trace.calls)) if share else []
        for item in sampled:
            item.module.forward = packed_forward(item, self._packing, trace.calls[item.module])
        self._prefix = PrefixCache(self._packing, trace.calls) if share else None
        for module in fixed:
            assert self._prefix is not None
            module.forward = self._prefix.cached(module)

    def _write(self, draw: Tensor) -> None:
        with torch.inference_mode():  # as the copy may have been made in inference mode, and its tensors then be of that kind
            self._weights.write(self._weights.layout.unflatten(draw))

    def _restore(self) -> None:
        self._prepared_for, self._prefix, self._packing.mode = None, None, "plain"
        self.num_shared_layers = 0
        for module, forward in self._forwards:
            restore_forward(module, forward)

    def _give_up(self, reason: str) -> None:
        self._restore()
        self.obstacle = reason
        logger.info("Draws run one after the other, as they cannot be packed: %s.", reason)


def in_pieces(inputs: Mapping[str, Any], lengths: list[int]) -> Iterator[dict[str, Any]]:
    """Cut what a model is given into forwards that follow each other behind one cache.

    Args:
        inputs: As for `DrawDecoder`.
        lengths: How many positions each forward takes; they sum to T.
    """
    width = inputs["input_ids"].shape[1]
    begin = 0
    for length in lengths:
        end = begin + length
        piece = dict(inputs)
        for name, value in inputs.items():
            if name == "attention_mask" and value is not None:
                piece[name] = value[:, : value.shape[1] - width + end]
            elif isinstance(value, Tensor) and value.shape[-1] == width:
                piece[name] = value[..., begin:end]
        yield piece
        begin = end


def equal_lengths(total: int, most: int) -> list[int]:
    """Divide a number of positions into equal parts of at most so many.

    >>> equal_lengths(10, 4)
    [4, 3, 3]
    """
    count = -(-total // most)
    return [total // count + (index < total % count) for index in range(count)] if total else []


def _copies(value: Any, num_draws: int, num_rows: int) -> Any:
    """Return S copies of the rows of a tensor, draw by draw; anything else, and positions that all rows share, as it is."""
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != num_rows:
        return value
    return value.repeat(num_draws, *[1] * (value.ndim - 1))


def _take_over(cache: Cache, shared: Cache) -> int:
    """Let a cache count the positions of layers that were left out of its forward, as only the shared one holds them; return how many.

    A layer's update puts new tensors in the place of old ones, so a shallow copy stays what it is.
    """
    left_out = [
        index
        for index, layer in enumerate(shared.layers)
        if index >= len(cache.layers) or cache.layers[index].get_seq_length() < layer.get_seq_length()
    ]
    for index in left_out:
        cache.layers[index : index + 1] = [copy.copy(shared.layers[index])]
    return len(left_out)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square error of logits over the standard deviation of those expected, at the worst place. Shapes (N, V).

    Over the vocabulary, as single ones of 50,000 logits in bfloat16 are further off than those of a few classes.
    """
    error = (found.float() - expected.float()).square().mean(dim=-1).sqrt()
    return float((error / expected.float().std(dim=-1)).max())


def _example(input_ids: Tensor, kind: tuple[str, ...]) -> dict[str, Tensor]:
    """Return two rows of the tokens at the end of the first one, the second padded on the left where there is a mask."""
    ids = input_ids[:1, -_PROOF_LENGTH:]
    ids = ids.repeat(1, -(-_PROOF_LENGTH // ids.shape[1]))[:, :_PROOF_LENGTH]
    rows = {"input_ids": torch.cat([ids, ids.flip(1)])}
    mask = torch.ones_like(rows["input_ids"])
    if "attention_mask" in kind:
        mask[1, :2] = 0
        rows["attention_mask"] = mask
    if "position_ids" in kind:
        rows["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
    return rows
