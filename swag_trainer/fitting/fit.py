"""fit_posterior: a posterior of any trained adapter, from labelled examples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, Literal, get_args

from torch import nn
from transformers import default_data_collator

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.errors import SwagError, shortened
from swag_trainer.fitting.adapter import TrainedAdapter
from swag_trainer.fitting.head_laplace import fit_head_laplace
from swag_trainer.fitting.lora_laplace import fit_laplace
from swag_trainer.fitting.tfb import fit_tfb
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.tasks.sequence_classification import SequenceClassification

FitMethod = Literal["tfb", "laplace-head", "laplace"]
MIN_EXAMPLES = 20
_FITS: dict[str, Callable[..., WeightPosterior]] = {
    "tfb": fit_tfb,
    "laplace-head": fit_head_laplace,
    "laplace": fit_laplace,
}
_READING = {"batch_size", "data_collator", "progress", "sampling", "held_out"}


def fit_posterior(
    model: nn.Module,
    data: Iterable[Any],
    *,
    method: FitMethod = "tfb",
    held_out: Iterable[Any] | None = None,
    sampling: Sampling | None = None,
    name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    adapter_name: str | None = None,
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
    **settings: float,
) -> WeightPosterior:
    """Make a posterior of an adapter that was trained without one.

    * "tfb": training-free Bayesianisation (Shi et al. 2024, arXiv:2412.05723), see `fit_tfb`. Noise on LoRA's A, as much as raises the loss
      by ``epsilon``. Any examples serve, those of training too.
    * "laplace-head": Laplace's approximation over the classification head, see `fit_head_laplace`. Training examples, and better
      held-out ones too.
    * "laplace": Laplace's approximation over LoRA's matrices and the head, see `fit_laplace`. Training examples, and held-out ones.

    Args:
        model: The trained PEFT model of a classifier. It stays as it is.
        data: Examples as the Trainer takes them, with the class number in ``labels`` or ``label``.
        method: One of the above.
        held_out: Examples that nothing was trained on, by which "laplace" and "laplace-head" choose their prior. "tfb" takes none.
        sampling: Draws, seed and design where the method draws; default: ``Sampling()``.
        name, split, revision: Of the data set, as for `swag_trainer.tune`.
        adapter_name: Which adapter; default: the active one.
        batch_size, data_collator, progress: As for `swag_trainer.MonteCarloPredictor`.
        settings: Of the method: ``epsilon`` of "tfb", ``prior_precision`` of "laplace-head" and "laplace".

    Returns:
        The posterior, with the adapter at its mean. `tune` and everything else takes it; the model computes what it did.

    Raises:
        SwagError: An unknown method or setting, fewer than 20 examples, labels that are not class numbers, a model that is not a classifier
            of exclusive classes, or an adapter that the method cannot be applied to.
    """
    if method not in get_args(FitMethod):
        raise SwagError(f"method must be one of {get_args(FitMethod)}, got {method!r}.")
    fit = _FITS[method]
    takes = set(fit.__kwdefaults__ or {})
    known = takes - _READING
    unknown = sorted(set(settings) - known)
    if unknown:
        raise SwagError(f"method={method!r} has the settings {sorted(known)}, got {unknown[0]!r}.")
    if held_out is not None and "held_out" not in takes:
        raise SwagError(f"method={method!r} takes no held_out examples.")
    for setting, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise SwagError(f"{setting} is a number, got {shortened(repr(value))}.")
    adapter, config = TrainedAdapter.of(model, adapter_name), base_model(adapted_model(model)).config
    task = adapter.task
    if method == "laplace-head" and not isinstance(task, SequenceClassification):
        raise SwagError(
            f'method="laplace-head" is a posterior of a classification head with an output for each class, and a model for {task.name!r} '
            'has none. Use method="tfb".'
        )
    if task.link(config) != "softmax":
        raise SwagError(
            "fit_posterior() is for classes that exclude each other; this model is for several labels or a regression."
        )
    read = functools.partial(HeldOut.of, task=task, num_labels=task.num_classes(config))
    examples = read(data, name=name, split=split, revision=revision)
    others = {} if held_out is None else {"held_out": read(held_out)}
    for given in (examples, *others.values()):
        if len(given.labels) < MIN_EXAMPLES:
            raise SwagError(f"Fitting to {len(given.labels)} examples would fit chance; at least {MIN_EXAMPLES} are needed.")
    reading = {"batch_size": batch_size, "data_collator": data_collator, "progress": progress}
    return fit(adapter, examples, sampling=sampling or Sampling(), **others, **reading, **settings)
