"""Tuning of scale and temperature on held-out data, with calibrated thresholds and conformal quantiles."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy.special import softmax
from torch import Tensor, nn
from transformers import default_data_collator

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.calibration.thresholds import calibrate_quantiles, calibrate_thresholds
from swag_trainer.errors import SwagError
from swag_trainer.metrics.temperature import averaged_nll, fit_temperature, penalised_nll
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.posterior.tuning import Candidate, Tuning
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.tasks import task_named

MIN_EXAMPLES = 20
_CHOSEN = ("scale", "temperature", "center", "dropout")  # fields of Sampling

Posterior = TypeVar("Posterior", bound=WeightPosterior)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A posterior's predictions at one scale, with its best temperature.

    Attributes:
        temperature: Chosen on the fitting part.
        penalised: The objective there, by which candidates are compared.
        fitted_nll, nll: Mean NLL on the fitting and on the calibration part.
        plain_nll: On the calibration part with temperature 1.
        probabilities: Averaged, of the calibration part. Shape (N, C).
    """

    temperature: float
    penalised: float
    fitted_nll: float
    nll: float
    plain_nll: float
    probabilities: np.ndarray


def tune(
    posterior: Posterior,
    model: nn.Module,
    data: Iterable[Any],
    *,
    sampling: Sampling | None = None,
    scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    risks: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
    confidence: float | None = 0.9,
    coverages: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    levels: Sequence[float] = (0.8, 0.9, 0.95),
    calibration_fraction: float = 0.5,
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> Posterior:
    """Return the posterior with the scale and the temperature that fit held-out data best, and a record of what was found.

    The examples are divided in two at random, by the seed. On one part scale and temperature are chosen, by the NLL of the averaged
    probabilities with a weak penalty on temperatures far from 1 (see `fit_temperature`). The other part is used only afterwards:
    thresholds and quantiles are calibrated on it, whose guarantees need examples that nothing was chosen on, and the posterior is compared
    on it with its baselines.

    One pass over the examples serves every temperature of a scale exactly, since a draw's logits are divided by it. Each scale needs a
    pass of its own: logits are not linear in the weights. Two more passes are for the baselines, the mean ("SWA") and the last snapshot
    ("MAP", where the posterior kept it). A point estimate has no scale, and only its temperature is chosen.

    Args:
        posterior: The posterior of the model's adapter, of any family. It stays as it is.
        model: The PEFT model, as for `MonteCarloPredictor`.
        data: Examples as the Trainer takes them, with the class number in ``labels`` or ``label``; none may have been trained on.
        sampling: Draws, seed and design; default: ``Sampling()``. What is found holds for these, and the pipeline uses them from then on.
            Its scale and temperature are what is looked for, and stay None.
        scales: Factors of the covariance to try, > 0.
        name, split, revision: Of the data set; published with the posterior. Default: those of a ``datasets.Dataset`` that was loaded from
            the Hub, else the name is "unnamed".
        risks: Fractions of wrong predictions to find thresholds for.
        confidence: Probability with which each of these thresholds keeps the true risk, see `threshold_for_risk`; None for thresholds
            that fit these examples only.
        coverages: Fractions of accepted examples to find thresholds for.
        levels: Fractions of conformal sets that shall hold the true label.
        calibration_fraction: Fraction of the examples that is held back, in [0, 1). With 0 all of them choose scale and temperature, no
            threshold and no quantile is calibrated, and the baselines are compared on the examples that were tuned on.
        batch_size, data_collator, progress: As for `MonteCarloPredictor`.

    Returns:
        A new posterior; its ``tuning`` is the record. `save_pretrained` writes it, the pipeline predicts with it.

    Warns:
        UserWarning: The posterior is not better than one of its baselines on this data.

    Raises:
        SwagError: Fewer than 20 examples, labels that are not class numbers, a regression or labels that do not exclude each other, a
            name that is a path, or a number out of range.
    """
    sampling = sampling or Sampling()
    given = [name for name in _CHOSEN if getattr(sampling, name) is not None]
    if given:
        raise SwagError(
            f"tune() chooses {given[0]}: leave it out of sampling, got {given[0]}={getattr(sampling, given[0])!r}. scales=[...] are the "
            "scales to choose from."
        )
    _check_scales(scales)
    _check_fractions(risks=risks, coverages=coverages, levels=levels, confidence=[] if confidence is None else [confidence])
    if not 0 <= calibration_fraction < 1:
        raise SwagError(
            f"calibration_fraction is the fraction of the examples that is held back, in [0, 1), got {calibration_fraction}."
        )
    config, task = base_model(adapted_model(model)).config, task_named(posterior.record.task)
    if (link := task.link(config)) != "softmax":
        kind = "a regression" if link == "identity" else "labels that do not exclude each other"
        raise SwagError(f"Tuning is for classes that exclude each other, and this model is for {kind}.")
    held_out = HeldOut.of(data, task=task, num_labels=config.num_labels, name=name, split=split, revision=revision)
    if len(held_out.labels) < MIN_EXAMPLES:
        raise SwagError(
            f"Tuning on {len(held_out.labels)} examples would choose by chance; at least {MIN_EXAMPLES} are needed."
        )
    order = np.random.default_rng(abs(sampling.seed)).permutation(len(held_out.labels))
    fitting, calibration = np.split(order, [len(order) - int(calibration_fraction * len(order))])

    def candidate(of: WeightPosterior, scale: float) -> _Candidate:
        predictor = MonteCarloPredictor(
            model,
            of,
            replace(sampling, scale=scale, temperature=1.0, dropout=False, center="mean"),
            batch_size=batch_size,
            data_collator=data_collator,
            progress=progress,
        )
        draws = predictor.predict(held_out.rows, return_draws=True).draw_probabilities
        # As good as the logits: a softmax is the same whatever is added to all classes. The floor keeps 0 from becoming -inf.
        logits = np.log(np.maximum(draws, np.finfo(np.float64).tiny))
        held_back = calibration if len(calibration) else fitting
        return _candidate(logits, held_out.labels, fitting, held_back, _numpy(predictor.draw_weights(len(draws))))

    if isinstance(posterior, PointPosterior):
        scales = [0.0]
    candidates = {float(scale): candidate(posterior, float(scale)) for scale in scales}
    scale, chosen = min(candidates.items(), key=lambda item: item[1].penalised)
    labels = held_out.labels[calibration]
    tuning = Tuning(
        temperature=chosen.temperature,
        dataset=held_out.name,
        split=held_out.split,
        revision=held_out.revision,
        num_examples=len(fitting),
        num_calibration=len(calibration),
        num_samples=sampling.num_samples,
        seed=sampling.seed,
        design=sampling.design,
        candidates=[Candidate("mean", scale, False, each.temperature, each.fitted_nll) for scale, each in candidates.items()],
        nll=chosen.nll,
        baselines=_baselines(posterior, candidate, chosen),
        thresholds=calibrate_thresholds(chosen.probabilities, labels, risks=risks, confidence=confidence, coverages=coverages)
        if len(labels)
        else [],
        conformal=calibrate_quantiles(chosen.probabilities, labels, levels) if len(labels) else [],
    )
    _warn_where_not_better(tuning, posterior.title, scale)
    return posterior.with_tuning(tuning, scale=scale)


def _candidate(
    logits: np.ndarray, labels: np.ndarray, fitting: np.ndarray, calibration: np.ndarray, weights: np.ndarray | None
) -> _Candidate:
    fitted, held_back = logits[:, fitting], logits[:, calibration]
    temperature = fit_temperature(fitted, labels[fitting], weights=weights)
    return _Candidate(
        temperature=temperature,
        penalised=penalised_nll(fitted, labels[fitting], temperature, weights=weights),
        fitted_nll=averaged_nll(fitted, labels[fitting], temperature, weights=weights),
        nll=averaged_nll(held_back, labels[calibration], temperature, weights=weights),
        plain_nll=averaged_nll(held_back, labels[calibration], weights=weights),
        probabilities=np.average(softmax(held_back / temperature, axis=-1), axis=0, weights=weights),
    )


def _numpy(weights: Tensor | None) -> np.ndarray | None:
    return None if weights is None else weights.double().numpy()


def _baselines(
    posterior: WeightPosterior, candidate: Callable[[WeightPosterior, float], _Candidate], chosen: _Candidate
) -> dict[str, float]:
    """NLL on the calibration part of what the posterior has to be better than, by name."""
    if isinstance(posterior, PointPosterior):
        return {"without temperature": chosen.plain_nll}
    mean = candidate(posterior, 0.0)
    baselines = {"SWA": mean.plain_nll, "SWA, temperature": mean.nll}
    last = posterior.last_snapshot()
    if last is not None:
        baselines["MAP, temperature"] = candidate(PointPosterior.at(last, posterior), 0.0).nll
    return baselines


def _warn_where_not_better(tuning: Tuning, title: str, scale: float) -> None:
    better = [f"{name} ({nll:.4f})" for name, nll in tuning.baselines.items() if nll <= tuning.nll]
    if better:
        warnings.warn(
            f"On {tuning.num_calibration or tuning.num_examples} examples of {tuning.dataset!r}, {title} with scale {scale:g} and "
            f"temperature {tuning.temperature:.2f} is not better than {' and '.join(better)}: its mean negative log-likelihood is "
            f"{tuning.nll:.4f}."
            + (
                f" Its draws cost {tuning.num_samples} times the compute and may not be worth it here; scale=0 predicts with the mean."
                if scale > 0
                else ""
            ),
            UserWarning,
            stacklevel=3,
        )


def _check_scales(scales: Sequence[float]) -> None:
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise SwagError(
            f"scales are factors of the covariance to try, finite and > 0 (the mean is tried in any case), got {list(scales)}."
        )


def _check_fractions(**fractions: Sequence[float]) -> None:
    for name, values in fractions.items():
        if not all(0 < value < 1 for value in values):
            raise SwagError(f"{name} must lie between 0 and 1, got {list(values)}.")
