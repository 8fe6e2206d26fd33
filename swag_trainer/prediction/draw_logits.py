"""The logits of a model under the weight draws of a posterior: the private copy, the draws, and the sampler that suits them."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from swag_trainer.adapters.initialisation import check_base
from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.shared_base import SharedBase
from swag_trainer.adapters.weights import AdapterWeights, private_copy
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.posterior.base import GaussianPosterior, WeightPosterior
from swag_trainer.prediction.blocks import DrawBlocks
from swag_trainer.prediction.dropout import DropoutMasks
from swag_trainer.prediction.lengths import rows_of_one_length
from swag_trainer.prediction.linearized import LOGIT_DRAWS, LinearizedSampler
from swag_trainer.prediction.packed.sampler import PackedSampler
from swag_trainer.prediction.sampler import LogitSampler, Sampling
from swag_trainer.prediction.sequential import SequentialSampler
from swag_trainer.tasks.base import Task

Method = Literal["monte_carlo", "linearized"]

_LABELS = {"label", "labels", "label_ids"}


class DrawLogits:
    """Logits of a batch under every draw of a posterior. Calls from several threads wait for each other.

    Args:
        model: The PEFT model. It gets a private copy, which shares the base model's tensors, and is not written to.
        posterior: A posterior of its active adapter.
        sampling: How to draw.
        task: What of the model's outputs is predicted.
        method: "monte_carlo" or "linearized".
        num_blocks: How many blocks of draws a call without a block uses.
        adapter_name, max_tokens, compile: As in `MonteCarloPredictor`.

    Attributes:
        base: The base model inside the private copy.
        sampler: What turns draws into logits.

    Raises:
        AdapterMismatchError: The posterior has other weights than the adapter, or was made on another base.
        SwagError: The adapter is merged, switched off or not active.
    """

    def __init__(
        self,
        model: nn.Module,
        posterior: WeightPosterior,
        sampling: Sampling,
        *,
        task: Task,
        method: Method,
        num_blocks: int,
        adapter_name: str | None,
        max_tokens: int | None,
        compile: bool,
    ) -> None:
        settings = {"task": task, "method": method, "num_blocks": num_blocks}
        settings |= {"adapter_name": adapter_name, "max_tokens": max_tokens, "compile": compile}
        self._made_from = functools.partial(DrawLogits, model, posterior, sampling, **settings)
        weights = private_weights(model, posterior, adapter_name)
        self._shared = SharedBase(model, weights.model)
        self.base: Any = base_model(weights.model)
        self._task = task = task.for_model(weights.model)
        self._inputs = set(inspect.signature(self.base.forward).parameters) - _LABELS | task.columns
        self._device = weights.parameters()[0].device
        self._lock = threading.RLock()
        self._blocks: DrawBlocks | None = None
        self._masks: DropoutMasks | None = None
        if method == "linearized" and sampling.scale_for(posterior) > 0:
            mean, scale = posterior.center(sampling.center or "mean"), sampling.scale_for(posterior)
            form = posterior.quadratic_form(scale, self._device)
            self.sampler: LogitSampler = LinearizedSampler(weights, mean, form, task=task, seed=sampling.seed)
            return
        self._blocks = DrawBlocks(posterior, sampling, self._device)
        draws = self._blocks.first(num_blocks)
        if sampling.dropout:
            self._masks = DropoutMasks(weights, task=task, seed=sampling.seed)
        if len(draws) > 1:
            self.sampler = PackedSampler(weights, draws, task=task, masks=self._masks, max_tokens=max_tokens, compile=compile)
        else:
            self.sampler = SequentialSampler(weights, draws, task=task, masks=self._masks)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be made anew from the same arguments where it is copied or sent to another process: locks and replaced forwards cannot be."""
        return self._made_from, ()

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a row, or of a batch, the model takes: no labels, and no columns that it does not know."""
        return {name: value for name, value in row.items() if name in self._inputs}

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of a batch that the model takes."""
        return {name: value for name, value in self.columns(batch).items() if isinstance(value, Tensor)}

    def averaging(self, num_draws: int) -> dict[str, Any]:
        """Return ``draws_per_block`` and ``weights`` of that many draws, as `summarise` and `error_limit` take them."""
        if self._blocks is None:
            return {"draws_per_block": LOGIT_DRAWS, "weights": None}
        with self._lock:
            return {"draws_per_block": self._blocks.block_size(), "weights": self._blocks.weights(num_draws)}

    def members(self, num_draws: int) -> Tensor | None:
        """Return the member of a mixture that each of that many draws comes from. Shape (num_draws,); None without members."""
        if self._blocks is None:
            return None
        with self._lock:
            return self._blocks.members(num_draws)

    def __call__(self, inputs: Mapping[str, Tensor], block: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of every draw, in the order of the rows, and the row that each event belongs to.

        Padding on the right is taken off and rows of one length go through the model together: with padding the float32 sums of attention
        run in another order, and the logits of MiniLM differed by up to 7e-6 between one batch and another, 1e-6 without.

        Args:
            inputs: What `tensors` returned.
            block: The number of the block to draw from; None for the first ``num_blocks``.

        Returns:
            Shapes (S, E, C) and (E,), on the CPU, float32.

        Raises:
            SwagError: They are not finite (minus infinity for the classes that an event does not have), or not those of the task; or the base that the private copy shares was changed.
        """
        self._shared.check()
        parts, places = [], []
        with self._lock:
            draws = None if block is None or self._blocks is None else self._blocks.vectors(block)
            if self._masks is not None:
                self._masks.first = 0 if block is None or draws is None else block * len(draws)
            padding: dict[str, Any] = {"on_the_left": self._task.pads_anywhere, "row_columns": self._task.row_columns}
            for rows, part in rows_of_one_length(inputs, **padding):
                part = {name: value.to(self._device) for name, value in part.items()}
                logits, events = self.sampler(part, draws), self._task.events(part)
                if logits.ndim != 3:
                    self._task.check_logits(logits[0], part, self.base)
                logits = logits.float().cpu()
                if not torch.isfinite(logits).all():
                    raise SwagError(
                        "A draw of the weights gave NaN or infinite logits. Is the scale too large, or the base model's precision too low?"
                    )
                missing = self._task.missing(part)
                parts.append(logits if missing is None else logits.masked_fill(missing.cpu(), -torch.inf))
                places.append(rows[events])
        width, rows = max(part.shape[-1] for part in parts), torch.cat(places)
        logits = torch.cat([with_classes(part, width) for part in parts], dim=1)
        order = rows.argsort(stable=True)
        return logits[:, order], rows[order]


def private_weights(model: nn.Module, posterior: WeightPosterior, adapter_name: str | None = None) -> AdapterWeights:
    """Return the weights that a posterior is of, in a private copy of the model.

    Raises:
        AdapterMismatchError: The posterior has other weights than the adapter, or was made on another base.
        SwagError: The adapter is merged, switched off or not active.
    """
    with torch.inference_mode(False):  # tensors made in inference mode would never have derivatives
        weights = private_copy(model, adapter_name, posterior.layout.keys)
    difference = posterior.layout.difference(weights.layout, ours="The posterior", theirs="The adapter")
    if difference:
        raise AdapterMismatchError(f"The posterior is of another adapter than the model's. {difference}")
    if posterior.record.base_fingerprint:
        check_base(weights.model, weights.adapter_name, posterior.record.base_fingerprint)
    return weights


def with_classes(logits: Tensor, count: int) -> Tensor:
    """Return logits of that many classes, minus infinity for those that are added: rows of another length may have more or fewer."""
    return logits if logits.shape[-1] == count else pad(logits, (0, count - logits.shape[-1]), value=-torch.inf)


def check_method(
    method: str, posterior: WeightPosterior, sampling: Sampling, *, compile: bool = False, in_blocks: bool = False
) -> None:
    """Check that a method goes with a posterior and with other settings.

    Args:
        method, posterior, sampling, compile: As in `MonteCarloPredictor`.
        in_blocks: Whether several blocks of draws are asked for.

    Raises:
        SwagError: It does not, or there is no such method.
    """
    if method not in get_args(Method):
        raise SwagError(f"method must be one of {get_args(Method)}, got {method!r}.")
    if method == "linearized" and not isinstance(posterior, GaussianPosterior):
        raise SwagError(
            f'method="linearized" needs a Gaussian posterior, and one of kind {posterior.kind!r} has no covariance in closed form. '
            'Use method="monte_carlo".'
        )
    if method == "linearized" and (compile or in_blocks or sampling.dropout):
        raise SwagError(
            'method="linearized" draws no weights: num_blocks, max_error, dropout and compile are for method="monte_carlo".'
        )
    if sampling.dropout and compile:
        raise SwagError("dropout=True has no compiled form: leave compile=True out.")
