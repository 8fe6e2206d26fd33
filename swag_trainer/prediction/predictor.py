"""MonteCarloPredictor: model x posterior x data -> averaged answers."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, default_data_collator

from swag_trainer.adapters.weights import private_copy
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.swag import SwagPosterior, checked_scale
from swag_trainer.prediction.predictive import Predictive, RegressionPredictive, link_of, summarise
from swag_trainer.prediction.sequential import SequentialForward

_LABELS = {"label", "labels", "label_ids"}


class MonteCarloPredictor:
    """Averages the answers of weights drawn from a posterior.

    The draws are made once and serve every call, so the answer for a row depends neither on its batch nor on the order. They go
    into a private copy of the adapter that shares the base model's tensors: the model itself is never written, and may answer
    plain forwards meanwhile. Calls from several threads wait for each other.

    Args:
        model: The PEFT model, on the device to predict on.
        posterior: The posterior of its active adapter.
        num_samples: S, how many draws.
        seed: The draws depend on this and on nothing else.
        scale: Factor of the covariance; None for the posterior's own, 0 for one pass at the mean (SWA).
        design: "matched" (10 draws do the work of 30 independent ones) or "iid".
        adapter_name: The adapter's name, if another than the active one is a mistake.
        batch_size: Rows per forward when a data set is given.
        data_collator: Makes a batch of rows; by default it pads with ``processing_class``.
        processing_class: The tokenizer, as in `transformers.Trainer`.
        progress: Show a bar when a data set takes more than two seconds.

    Raises:
        AdapterMismatchError: The posterior has other weights than the adapter.
        SwagError: A number is out of range, or the adapter is merged, switched off or not active.
    """

    def __init__(
        self,
        model: nn.Module,
        posterior: SwagPosterior,
        *,
        num_samples: int = 10,
        seed: int = 0,
        scale: float | None = None,
        design: Design = "matched",
        adapter_name: str | None = None,
        batch_size: int = 32,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        processing_class: Any = None,
        progress: bool = True,
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.scale = posterior.scale if scale is None else checked_scale(scale)
        self.batch_size = batch_size
        self.progress = progress
        self._collate = data_collator or (
            DataCollatorWithPadding(processing_class) if processing_class else default_data_collator
        )
        # At scale 0 every draw is the mean: one pass, and a mutual information of exactly 0.
        draws = posterior.sample_flat(num_samples, seed=seed, scale=self.scale, design=design)[: 1 if self.scale == 0 else None]
        weights = private_copy(model, adapter_name, posterior.layout.keys)
        difference = posterior.layout.difference(weights.layout, ours="The posterior", theirs="The adapter")
        if difference:
            raise AdapterMismatchError(f"The posterior is of another adapter than the model's. {difference}")
        self._device = weights.parameters()[0].device
        self._forward = SequentialForward(weights, draws.to(self._device))
        base = weights.model.get_base_model()
        self._inputs = set(inspect.signature(base.forward).parameters) - _LABELS
        self._link = link_of(getattr(base.config, "problem_type", None), getattr(base.config, "num_labels", 2))
        self._lock = threading.Lock()

    def predict(self, data: Any, *, return_draws: bool = False) -> Predictive | RegressionPredictive:
        """Answer for a data set or a batch.

        Args:
            data: A batch (a mapping of tensors, as a tokenizer returns it with ``return_tensors="pt"``), or a data set: a sequence of
                rows as the Trainer takes them. Labels and columns that the model does not know are left out.
            return_draws: Keep each draw's answer as well.

        Returns:
            A `Predictive`, or a `RegressionPredictive` if the model's ``problem_type`` is "regression".

        Raises:
            SwagError: No rows, rows of unequal length without a tokenizer to pad them, or an answer that is not finite.
        """
        if isinstance(data, Mapping):
            return self._answer(self.logits(data), return_draws)
        # By index where there is a length: a torch Dataset need not say where it ends otherwise.
        source = (data[index] for index in range(len(data))) if hasattr(data, "__len__") else data
        rows = [{name: value for name, value in row.items() if name in self._inputs} for row in source]
        if not rows:
            raise SwagError("predict() got a data set without rows.")
        # Rows of like length share a batch: padding costs S times as much here as in a plain prediction.
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index].get("input_ids", ())))
        starts = tqdm(range(0, len(rows), self.batch_size), desc="Predicting", delay=2, disable=not self.progress)
        batches = ([rows[index] for index in order[start : start + self.batch_size]] for start in starts)
        parts = [self._answer(self.logits(self._collated(batch)), return_draws) for batch in batches]
        return type(parts[0]).from_batches(parts, order)

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the logits of every draw for one batch. Shape (S, B, C), on the CPU, float32.

        Raises:
            SwagError: They are not finite.
        """
        inputs = {
            name: value.to(self._device) for name, value in batch.items() if name in self._inputs and isinstance(value, Tensor)
        }
        with self._lock:
            logits = self._forward(inputs).float().cpu()
        if not torch.isfinite(logits).all():
            raise SwagError(
                "A draw of the weights gave NaN or infinite logits. Is the scale too large, or the base model's precision too low?"
            )
        return logits

    def _collated(self, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
        try:
            return self._collate(rows)
        except ValueError as error:
            raise SwagError(
                f"{len(rows)} rows do not fit in one batch ({str(error)[:100]}). Pass processing_class=tokenizer so that they are "
                "padded, or batch_size=1."
            ) from error

    def _answer(self, logits: Tensor, return_draws: bool) -> Predictive | RegressionPredictive:
        return summarise(logits, self._link, keep_draws=return_draws)
