"""Dropout while drawing: one mask per draw, for MC dropout and for draws of a posterior (Gal and Ghahramani 2016, arXiv:1506.02142).

torch draws a mask for each example, so its predictions depend on the batch. Here a mask belongs to a draw, as the draw's weights do:

* LoRA dropout and hidden dropout have a mask per feature, which examples and positions share: to drop a feature out is to set rows of a
  weight matrix to 0, so the draw is a model of its own (variational dropout, Gal and Ghahramani 2016, arXiv:1512.05287).
* Attention dropout has a mask per head, query and key position, which examples share. Positions are counted from a text's own first
  token, so padding on either side changes nothing.

The masks of a draw follow from the seed, the draw's number, the module's name and the number of the module's call in a forward.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from swag_trainer.adapters.peft_layers import base_name, own_dropouts
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import DropoutError, NoDropoutError, SwagError
from swag_trainer.prediction.dropout_kinds import LEAVE_OUT, check_supported
from swag_trainer.prediction.dropout_masks import keep_masks, mask_key
from swag_trainer.tasks.base import Task

_KEPT_BYTES = 2**28  # masks that are kept for the next batch
_POSITIONS = 64  # attention masks are computed for multiples of it, and cut to the length of a text
_SOFTMAX = frozenset((F.softmax, torch.softmax, Tensor.softmax))
_OTHER_DROPOUTS = frozenset((F.alpha_dropout, F.feature_alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d))


class PrefixDone(Exception):
    """A forward of no draw in particular has reached what differs between draws."""


class DropoutMasks:
    """Applies the masks of draws in a private copy of a model.

    In a forward under `running` every call of `torch.nn.functional.dropout` (which `nn.Dropout` makes) multiplies by the masks of the
    draws, whatever mode its module is in, and so does attention with dropout; the model stays in evaluation mode. Modules that ask
    whether they train before they drop anything out are put into training mode: attention, and PEFT's layers with a dropout of their own.
    What drops out in a way that a mask cannot replace is an error. Stochastic depth (layerdrop, DropPath) is no dropout: it stays off.

    Args:
        weights: The weights in a private copy of the model, whose modules get another ``forward``.
        task: What of the model's outputs is predicted.
        seed: Of the masks.

    Attributes:
        first: The number of the first of the draws that a sampler is given.
        softmax: The latest result of a softmax of three dimensions.

    Raises:
        DropoutError: Something in the model drops out in a way that is not supported.
    """

    def __init__(self, weights: AdapterWeights, *, task: Task, seed: int) -> None:
        self.first = 0
        self._draw: Tensor | None = None  # under vmap over draws, the place of this one among those that are running
        self._model, self._task, self._seed = weights.model, task, seed
        self._draws = range(0)
        self._num_rows = 0
        self._first_tokens: Tensor | None = None
        self._width = 0
        self._calls: list[nn.Module] = []  # of the modules that are running, the innermost last
        self._counts: Counter[nn.Module] = Counter()
        self._droppers: set[nn.Module] = set()
        self._sizes: dict[object, set[int]] = defaultdict(set)
        self.softmax: weakref.ref[Tensor] | None = None
        self._prepared: set[object] = set()
        self._is_preparing = False
        self._found_new = False
        self._kept: dict[object, Tensor] = {}
        self._kept_bytes = 0
        self._interception = _Interception(self)
        check_supported(self._model, weights.adapter_name)
        # Without the adapter's name, which may be another one where it is loaded next.
        self._names = {
            module: base_name(name.removesuffix(f".{weights.adapter_name}")) for name, module in self._model.named_modules()
        }
        for module in self._names:
            if isinstance(module, nn.Dropout) or not type(module).__module__.startswith("torch.nn."):
                module.forward = self._followed(module)
            if any(dropout.p > 0 for dropout in own_dropouts(module)):
                module.training = True  # of this one module: train() would reach the base model's too

    @contextmanager
    def running(self, draws: range, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Apply the masks of some draws in forwards of a batch, once for each draw or packed draw by draw.

        Args:
            draws: Their places among the draws that a sampler was given. None at all: reaching a dropout raises `PrefixDone`.
            batch: What the model takes; of packed draws, of one of them.

        Raises:
            NoDropoutError: Nothing in the model drops out.
        """
        self._prepare(batch)
        self._draws = range(self.first + draws.start, self.first + draws.stop)
        self._num_rows = len(draws) * len(next(iter(batch.values())))
        self._first_tokens = _first_tokens(batch)
        self._width = 0 if self._first_tokens is None else batch["attention_mask"].shape[1]
        with self._interception:
            yield

    @contextmanager
    def within(self, draw: Tensor) -> Iterator[None]:
        """Apply the masks of one draw, under vmap over the draws that are running; ``draw`` is its place among them."""
        self._draw = draw
        try:
            yield
        finally:
            self._draw = None

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Let modules be called that are called again in the same forward, with the same masks."""
        before = Counter(self._counts)
        yield
        self._counts = before

    def inside(self, module: nn.Module) -> bool:
        """Return whether something within a module has dropped out so far."""
        return not self._droppers.isdisjoint(module.modules())

    def of_features(self, dropout: nn.Module, x: Tensor) -> Tensor | None:
        """Return what a dropout multiplies the features of a tensor by, once in its place; None if by nothing. Shape (S, features)."""
        rate = getattr(dropout, "p", 0.0)  # PEFT has an Identity for 0
        return self._factors(dropout, x.shape[-1:], rate, x) if rate else None

    def dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Stand in for `torch.nn.functional.dropout`."""
        module = self._calls[-1]
        is_attention = x.ndim == 4  # (rows, heads, queries, keys)
        if is_attention and isinstance(module, nn.Dropout):
            module = self._calls[-2]  # so that masks are the same in SDPA, where this dropout is not called
        if p == 0:
            if is_attention:
                self._let_train(module)
            return x
        if self.softmax is not None and self.softmax() is x:
            raise DropoutError(
                f"{self._names[module]!r} has attention of rows and heads in one dimension, which is not supported. {LEAVE_OUT}"
            )
        call = module, self._counts[module]
        factors = self._factors(module, x.shape[1:] if is_attention else x.shape[-1:], p, x)
        if not is_attention:
            factors = factors.view(-1, *[1] * (x.ndim - 1), x.shape[-1])
        result = self._times(x, factors, call)
        return x.copy_(result) if inplace else result

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Stand in for `torch.nn.functional.scaled_dot_product_attention`, whose masks cannot be chosen."""
        if dropout_p == 0:
            self._let_train(self._calls[-1])
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if query.ndim != 4:
            raise DropoutError(f"Attention drops out of {query.ndim} dimensions, and four are supported. {LEAVE_OUT}")
        if enable_gqa:
            key, value = (side.repeat_interleave(query.shape[1] // side.shape[1], dim=1) for side in (key, value))
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        probabilities = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        if attn_mask is not None:  # a padded query that attends to nothing gives 0, as torch's own does, and not NaN
            probabilities = probabilities.masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0)
        return self.dropout(probabilities, dropout_p) @ value

    def _factors(self, module: nn.Module, shape: torch.Size, rate: float, like: Tensor) -> Tensor:
        """0 or 1 / (1 - rate). Shape (S, features), or (S, B or 1, heads, queries, keys) where ``shape`` has three dimensions; float32."""
        self._droppers.add(module)
        call = self._counts[module]
        self._counts[module] += 1
        if not self._draws:
            raise PrefixDone
        extent = tuple(shape)
        if len(shape) == 3:
            extent = (shape[0], *(-(-size // _POSITIONS) * _POSITIONS for size in shape[1:]))
        kind = (module, call, extent, rate, self._draws, like.device)
        keep = self._kept.get(kind)
        if keep is None:
            keys = [mask_key(self._seed, draw, self._names[module], call) for draw in self._draws]
            keep = keep_masks(keys, extent, rate, like.device)
            if self._kept_bytes + keep.nbytes > _KEPT_BYTES:
                self._kept.clear()
                self._kept_bytes = 0
            self._kept[kind] = keep
            self._kept_bytes += keep.nbytes
        if len(shape) == 3:
            keep = self._from_first_tokens(keep, shape)
        # Not in bfloat16, where 1 / 0.9 is 0.2 % too small.
        return keep.to(torch.promote_types(like.dtype, torch.float32)) * (1 / (1 - rate) if rate < 1 else 0.0)

    def _from_first_tokens(self, keep: Tensor, shape: torch.Size) -> Tensor:
        """Cut attention masks to the positions of a batch. Shape (S, B or 1, heads, queries, keys)."""
        queries, keys = shape[1:]
        if self._first_tokens is None:
            return keep[:, None, :, :queries, :keys]
        if not queries == keys == self._width:
            raise DropoutError(
                f"Texts of {self._width} positions are padded on the left, and attention has {queries} queries and {keys} keys: their "
                "positions cannot be counted from the first token for dropout. Pad on the right."
            )
        places = (torch.arange(self._width, device=keep.device) - self._first_tokens[:, None]).clamp_min(0)
        return keep[:, :, places[:, :, None], places[:, None, :]].movedim(2, 1)

    def _times(self, x: Tensor, factors: Tensor, call: object) -> Tensor:
        """Multiply the rows of each draw by its factors. Shapes (S * rows, ...) and (S, rows or 1, ...)."""
        if self._draw is not None:
            return (x * factors.index_select(0, self._draw.view(1)).squeeze(0)).to(x.dtype)
        if len(factors) == 1:
            self._sizes[call].add(x.shape[0])
            return (x * factors[0]).to(x.dtype)
        # A trace runs one row, and the same twice: relative positions, which no row has, are as many for both.
        if len(self._sizes[call]) < 2 or x.shape[0] % self._num_rows:
            raise SwagError("something that is the same for all rows drops out")  # and the draws run one after the other
        return (x.unflatten(0, (len(factors), -1)) * factors).flatten(0, 1).to(x.dtype)

    def _followed(self, module: nn.Module) -> Callable[..., Any]:
        """The forward of a module that is known to run while it does."""
        plain = module.forward

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._calls:
                self._counts.clear()  # the whole model is called
            self._calls.append(module)
            try:
                return plain(*args, **kwargs)
            finally:
                self._calls.pop()

        return forward

    def _prepare(self, batch: Mapping[str, Tensor]) -> None:
        """Find what drops out, and the attention that asks whether it trains before it does, in forwards of one row."""
        kind = tuple(sorted((name, value.ndim) for name, value in batch.items()))
        if kind in self._prepared:
            return
        row = {name: value[:1] for name, value in batch.items()}
        self._draws, self._num_rows, self._first_tokens = range(1), 1, None
        self._is_preparing = self._found_new = True
        try:
            with self._interception:
                while self._found_new:
                    self._found_new = False
                    self._model(**self._task.inputs(row), **self._task.constants(self._model))
        finally:
            self._is_preparing = False
        if not self._droppers:
            raise NoDropoutError(
                f"Masks were to be applied, but nothing in this model drops out. Was it trained with dropout 0? {LEAVE_OUT}"
            )
        self._prepared.add(kind)

    def _let_train(self, module: nn.Module) -> None:
        """Put a module whose attention was asked for without dropout, and all of its kind, into training mode."""
        if module.training:
            return
        if not self._is_preparing:
            raise DropoutError(
                f"{self._names[module]!r} attends without dropout, and did not attend in the first forward, where such modules are found. "
                + LEAVE_OUT
            )
        self._found_new = True
        for other in self._names:
            if type(other) is type(module):
                other.training = True


class _Interception(TorchFunctionMode):
    """Gives the calls of dropout and attention that this thread makes to `DropoutMasks`."""

    def __init__(self, masks: DropoutMasks) -> None:
        super().__init__()
        self._masks = masks

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._masks.dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._masks.attention(*args, **kwargs)
        if func in _OTHER_DROPOUTS:
            raise DropoutError(
                f"The model calls torch.nn.functional.{func.__name__}, and masks replace dropout only. {LEAVE_OUT}"
            )
        result = func(*args, **kwargs)
        if func in _SOFTMAX and result.ndim == 3:
            self._masks.softmax = weakref.ref(result)
        return result


def masked(masks: DropoutMasks | None, draws: range, batch: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """`DropoutMasks.running`, where there is dropout."""
    return nullcontext() if masks is None else masks.running(draws, batch)


def _first_tokens(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Return where each text begins, shape (B,); None where all begin at 0."""
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2 or bool(mask[:, 0].all()):
        return None
    return mask.ne(0).int().argmax(dim=1)
