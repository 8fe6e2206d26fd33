"""Choose scale and temperature on held-out data, and calibrate what to do with the answers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax
from torch import nn
from transformers import default_data_collator

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.calibration.thresholds import calibrate_quantiles, calibrate_thresholds
from swag_trainer.errors import SwagError
from swag_trainer.metrics.temperature import averaged_nll, fit_averaged_temperature
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.posterior.tuning import Tuning
from swag_trainer.prediction.predictive import link_of
from swag_trainer.prediction.predictor import MonteCarloPredictor

FEWEST_ROWS = 20


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A posterior's answers at one scale, with its best temperature.

    Attributes:
        temperature: Chosen on the fitting rows.
        penalised: What it was chosen by, on the fitting rows.
        fitted_nll, nll: Mean NLL on the fitting and on the calibration rows.
        plain_nll: On the calibration rows with temperature 1.
        probabilities: Averaged, of the calibration rows. Shape (N, C).
    """

    temperature: float
    penalised: float
    fitted_nll: float
    nll: float
    plain_nll: float
    probabilities: np.ndarray


def tune(
    posterior: SwagPosterior,
    model: nn.Module,
    data: Iterable[Any],
    *,
    num_samples: int = 10,
    seed: int = 0,
    scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    risks: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
    risk_level: float | None = 0.9,
    coverages: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    levels: Sequence[float] = (0.8, 0.9, 0.95),
    calibration_fraction: float = 0.5,
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> SwagPosterior:
    """Return the posterior with the scale and the temperature that suit held-out data best, and a record of what was found.

    The rows are divided in two at random, by the seed. On one part scale and temperature are chosen, by the NLL of the averaged
    probabilities with a weak penalty on temperatures far from 1 (see `fit_averaged_temperature`). The other part is only looked at
    afterwards: thresholds and quantiles are calibrated on it, whose promises need rows that nothing was chosen on, and SWAG is compared on it
    with other answers.

    One pass over the rows serves every temperature of a scale exactly, since a draw's logits are divided by it. Each scale needs a pass
    of its own: logits are not linear in the weights. (They are where nothing but a last linear layer is drawn; that is not made use of.)
    Two more passes answer for the baselines, SWA (the mean) and MAP (the last snapshot, where the posterior kept deviations).

    Args:
        posterior: The posterior of the model's adapter. It stays as it is.
        model: The PEFT model, as for `MonteCarloPredictor`.
        data: Rows as the Trainer takes them, with the class number in ``labels`` or ``label``; none may have been trained on.
        num_samples, seed: The draws. What is found holds for these, and the pipeline uses them from then on.
        scales: Factors of the covariance to try, > 0.
        name, split, revision: What the data is; published with the posterior. Read from a ``datasets.Dataset`` that was loaded from the
            Hub; otherwise the name must be given.
        risks: Shares of wrong answers to find thresholds for.
        risk_level: Probability with which each of these thresholds keeps the true risk, see `threshold_for_risk`; None for thresholds
            that fit these rows only.
        coverages: Shares of answered rows to find thresholds for.
        levels: Shares of conformal sets that shall hold the true label.
        calibration_fraction: Which part of the rows is held back, in [0, 1). With 0 all rows choose scale and temperature, no threshold and
            no quantile is calibrated, and SWAG is compared on the rows that it was tuned on.
        batch_size, data_collator, progress: As for `MonteCarloPredictor`.

    Returns:
        A new posterior; its ``tuning`` is the record. `save_pretrained` writes it, the pipeline answers with it.

    Warns:
        UserWarning: SWAG is not better than one of the baselines on this data.

    Raises:
        SwagError: Fewer than 20 rows, labels that are no class numbers, a regression or labels that do not exclude each other, a data
            set without a name, or a number out of range.
    """
    config = base_model(adapted_model(model)).config
    _check_numbers(scales=scales, risks=risks, coverages=coverages, levels=levels, risk_level=risk_level)
    if (link := link_of(getattr(config, "problem_type", None), config.num_labels)) != "softmax":
        kind = "a regression" if link == "identity" else "labels that do not exclude each other"
        raise SwagError(f"Tuning is for classes that exclude each other, and this model is for {kind}.")
    data = HeldOut.of(data, name=name, split=split, revision=revision, num_labels=config.num_labels)
    if not 0 <= calibration_fraction < 1:
        raise SwagError(
            f"calibration_fraction is the part of the rows that is held back, in [0, 1), got {calibration_fraction}."
        )
    if len(data.rows) < FEWEST_ROWS:
        raise SwagError(f"Tuning on {len(data.rows)} rows would choose by chance; give it at least {FEWEST_ROWS}.")
    order = np.random.default_rng(abs(seed)).permutation(len(data.rows))
    fitting, calibration = np.split(order, [len(order) - int(calibration_fraction * len(order))])
    judged = calibration if len(calibration) else fitting

    def candidate(of: SwagPosterior, scale: float) -> _Candidate:
        predictor = MonteCarloPredictor(
            model,
            of,
            num_samples=num_samples,
            seed=seed,
            scale=scale,
            temperature=1.0,
            batch_size=batch_size,
            data_collator=data_collator,
            progress=progress,
        )
        draws = predictor.predict(data.rows, return_draws=True).draw_probabilities
        # As good as the logits: a softmax does not see what is added to all classes. The floor keeps 0 from becoming -inf.
        logits = np.log(np.maximum(draws, 1e-300))
        return _candidate(logits, data.labels, fitting, judged)

    candidates = {float(scale): candidate(posterior, float(scale)) for scale in scales}
    scale, chosen = min(candidates.items(), key=lambda item: item[1].penalised)
    swa = candidate(posterior, 0.0)
    baselines = {"SWA": swa.plain_nll, "SWA, temperature": swa.nll}
    if posterior.rank:
        baselines["MAP, temperature"] = candidate(PointPosterior.at(posterior.last_snapshot(), posterior), 0.0).nll
    labels = data.labels[calibration]
    tuning = Tuning(
        temperature=chosen.temperature,
        dataset=data.name,
        split=data.split,
        revision=data.revision,
        num_examples=len(fitting),
        num_calibration=len(calibration),
        num_samples=num_samples,
        seed=seed,
        scale_nll=[[scale, each.temperature, each.fitted_nll] for scale, each in candidates.items()],
        nll=chosen.nll,
        baselines=baselines,
        thresholds=calibrate_thresholds(chosen.probabilities, labels, risks, risk_level, coverages) if len(labels) else [],
        conformal=calibrate_quantiles(chosen.probabilities, labels, levels) if len(labels) else [],
    )
    _warn_where_not_better(tuning, scale)
    return posterior.with_tuning(tuning, scale=scale)


def _candidate(logits: np.ndarray, labels: np.ndarray, fitting: np.ndarray, calibration: np.ndarray) -> _Candidate:
    temperature, penalised = fit_averaged_temperature(logits[:, fitting], labels[fitting])
    held_back = logits[:, calibration]
    return _Candidate(
        temperature=temperature,
        penalised=penalised,
        fitted_nll=averaged_nll(logits[:, fitting], labels[fitting], temperature),
        nll=averaged_nll(held_back, labels[calibration], temperature),
        plain_nll=averaged_nll(held_back, labels[calibration]),
        probabilities=softmax(held_back / temperature, axis=-1).mean(axis=0),
    )


def _warn_where_not_better(tuning: Tuning, scale: float) -> None:
    better = [f"{name} ({nll:.4f})" for name, nll in tuning.baselines.items() if nll <= tuning.nll]
    if better:
        warnings.warn(
            f"On {tuning.num_calibration or tuning.num_examples} rows of {tuning.dataset!r}, SWAG with scale {scale:g} and temperature {tuning.temperature:.2f} is "
            f"not better than {' and '.join(better)}: its mean negative log-likelihood is {tuning.nll:.4f}. Its draws cost {tuning.num_samples} "
            "times the compute and may not be worth it here; scale=0 answers with SWA.",
            UserWarning,
            stacklevel=3,
        )


def _check_numbers(*, risk_level: float | None, **numbers: Sequence[float]) -> None:
    scales = numbers.pop("scales")
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise SwagError(
            f"scales are factors of the covariance to try, finite and > 0 (SWA is tried anyway), got {list(scales)}."
        )
    if risk_level is not None:
        numbers["risk_level"] = [risk_level]
    for name, shares in numbers.items():
        if not all(0 < share < 1 for share in shares):
            raise SwagError(f"{name} must lie between 0 and 1, got {list(shares)}.")
