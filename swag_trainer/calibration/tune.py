"""Tuning on held-out data: centre, scale, dropout and temperature of the draws, with cross-fitted thresholds and conformal quantiles."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from torch import nn
from transformers import default_data_collator

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.calibration.cross_fitting import (
    DEFAULT_SCALE,
    NUM_FOLDS,
    CandidateLogits,
    choose,
    cross_fitted,
)
from swag_trainer.calibration.events import CalibrationEvents, events_of_examples
from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.calibration.ood import with_ood_score
from swag_trainer.calibration.thresholds import (
    calibrate_label_quantiles,
    calibrate_quantiles,
    calibrate_thresholds,
    holds_every_label,
    possible_labels,
)
from swag_trainer.errors import DropoutError, NoDropoutError, SwagError
from swag_trainer.metrics.scores import negative_log_likelihood
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.tuning import CENTER_NAMES, Candidate, Center, ConformalQuantile, Tuning
from swag_trainer.prediction.decisions import DEFAULT_SETS
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.tasks import task_for
from swag_trainer.tasks.features import check_link

MIN_EXAMPLES = 20
_CHOSEN = ("scale", "temperature", "center", "dropout")  # fields of Sampling
_BASELINES: tuple[tuple[str, Center], ...] = (("SWA, temperature", "mean"), ("MAP, temperature", "last"))

Posterior = TypeVar("Posterior", bound=WeightPosterior)


def tune(
    posterior: Posterior,
    model: nn.Module,
    data: Iterable[Any],
    *,
    sampling: Sampling | None = None,
    scales: Sequence[float] = (DEFAULT_SCALE,),
    name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    risks: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
    confidence: float | None = 0.9,
    coverages: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    levels: Sequence[float] = (0.8, 0.9, 0.95),
    groups: Sequence[int] | None = None,
    train_data: Iterable[Any] | None = None,
    batch_size: int = 32,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
    progress: bool = True,
) -> Posterior:
    """Return the posterior with the way to draw that fits held-out data best, and a record of what was found.

    Few strong candidates are tried, as a hundred examples cannot tell many apart:

    * no noise (``scale=0``), around each centre of the posterior: the mean (SWA), the mean of the last snapshots, the last snapshot;
    * draws at the default scale, around the mean and around the last snapshot;
    * the same draws with dropout, if the model drops out in training.

    Each gets its own temperature. All examples choose, by the NLL of the averaged probabilities with a prior: normal in log T with
    standard deviation 0.2 and in log scale with log 4, 2 nats in total against another centre than the mean or no noise, and 2 against
    dropout. Whatever else is recorded is cross-fitted: five times candidate and temperature are chosen on four fifths of the examples and
    predict the last fifth. On these predictions thresholds and quantiles are calibrated, and the posterior is compared with its
    baselines: the mean ("SWA"), with and without a temperature, and the last snapshot with one ("MAP, temperature").

    Guarantees on cross-fitted predictions hold approximately. On 1,000 simulated data sets of 100 examples, sets of "lac" for 80, 90 and 95 %
    held the true label in 80.4, 90.6 and 95.6 % of the cases, and promised risks were broken on less than 1 % of the data sets
    (benchmarks/cross_fitting.py).

    Where several labels may be right, each label of each example is a yes or no that chooses, and every NLL is a mean over these. There
    are no thresholds, as no label is the one to withhold. Conformal sets of "lac" hold *all* right labels of an example with the
    probability ``levels``.

    A candidate without noise costs one forward for each example, every other one as many as there are draws. One pass serves every
    temperature exactly, since a draw's logits are divided by it. A point estimate has only its temperature to choose.

    An example may have several events, such as the tokens of a text. All of them count in the NLL, folds hold whole examples, and neither
    thresholds nor quantiles are calibrated: the guarantees are for events that do not depend on each other.

    Args:
        posterior: The posterior of the model's adapter, of any family. It stays as it is.
        model: The PEFT model, as for `MonteCarloPredictor`.
        data: Examples as the Trainer takes them, with the class number in ``labels`` or ``label``, or where several labels may be right a
            0 or 1 for each of them; none may have been trained on.
        sampling: Draws, seed and design; default: ``Sampling()``. What is found holds for these, and the pipeline uses them from then on.
            Its scale, temperature, centre and dropout are what is looked for, and stay None.
        scales: Factors of the covariance to try, > 0, each with every centre and with dropout.
        name, split, revision: Of the data set; published with the posterior. Default: those of a ``datasets.Dataset`` that was loaded from
            the Hub, else the name is "unnamed".
        risks: Fractions of wrong predictions to find thresholds for.
        confidence: Probability with which each of these thresholds keeps the true risk, see `threshold_for_risk`; None for thresholds
            that fit these examples only.
        coverages: Fractions of accepted examples to find thresholds for.
        levels: Fractions of conformal sets that shall hold the true label.
        groups: Number of the example that each row of the data belongs to, where an example has several rows, one after the other, as the
            windows of a context have: examples are counted and divided into folds, not rows. Default: each row is one.
        train_data: Examples that the model was trained on, as the Trainer takes them, to fit the class means of the OOD score to. Without
            them the posterior keeps those of `SwagCallback`; without these the score is cross-fitted to ``data``, with five examples per
            class or more. The distances that the score compares with are those of ``data``, see `swag_trainer.calibration.ood`.
        batch_size, data_collator, progress: As for `MonteCarloPredictor`.

    Returns:
        A new posterior; its ``tuning`` is the record. `save_pretrained` writes it, the pipeline predicts with it. The adapter beside it and
        `mean_vector` stay the mean.

    Warns:
        UserWarning: The posterior is not better than one of its baselines on this data, the chosen scale is at an end of ``scales``,
            dropout could not be tried, or prediction sets of "lac" hold every label.

    Raises:
        SwagError: Fewer than 20 examples, labels of another kind, a regression, a name that is a path, or a number out of range.
    """
    sampling = sampling or Sampling()
    _check_settings(sampling, scales)
    _check_fractions(risks=risks, coverages=coverages, levels=levels, confidence=[] if confidence is None else [confidence])
    config, task = base_model(adapted_model(model)).config, task_for(posterior.record)
    if (link := task.link(config)) == "identity":
        raise SwagError(
            "Tuning is for classes or labels, and this model is for a regression: its numbers have no likelihood here."
        )
    if train_data is not None:
        check_link(model, task)  # refuses now what it would refuse when all candidates have been tried
    source: dict[str, Any] = {"name": name, "split": split, "revision": revision}
    held_out = HeldOut.of(data, task=task, num_labels=task.num_classes(config), exclusive=link == "softmax", **source)
    num_events = events_of_examples(task.num_events(held_out.rows), groups)
    if len(num_events) < MIN_EXAMPLES:
        raise SwagError(f"Tuning on {len(num_events)} examples would choose by chance; at least {MIN_EXAMPLES} are needed.")
    events = CalibrationEvents(held_out.labels, num_events if link == "softmax" else None)
    labels = events.true

    plain = posterior.with_features(None)  # no OOD scores while candidates are compared

    def logits_of(center: Center, scale: float, dropout: bool) -> CandidateLogits:
        settings = replace(sampling, center=center, scale=scale, dropout=dropout, temperature=1.0)
        predictor = MonteCarloPredictor(
            model, plain, settings, task=task, batch_size=batch_size, data_collator=data_collator, progress=progress
        )
        draws = predictor.predict(held_out.rows, return_draws=True).draw_probabilities
        weights = predictor.draw_weights(len(draws))
        logits, counts = events.logits(draws), None if weights is None else weights.double().numpy()
        return CandidateLogits(center, scale, dropout, logits, labels, counts)

    candidates = list(_candidates(posterior, [float(scale) for scale in scales], logits_of))
    choice = choose(candidates, np.arange(len(labels)))
    chosen = candidates[choice.best]
    folds = events.folds(seed=sampling.seed)
    of_events = cross_fitted(candidates, folds)
    probabilities = events.by_example(of_events)
    num_examples = len(num_events)
    energy = posterior.relative_energy(chosen.scale)
    tuning = Tuning(
        temperature=choice.temperature,
        center=chosen.center,
        dropout=chosen.dropout,
        relative_energy=None if energy is None or math.isinf(energy) else energy,
        dataset=held_out.name,
        split=held_out.split,
        revision=held_out.revision,
        num_examples=num_examples,
        num_calibration=num_examples,
        num_folds=NUM_FOLDS,
        num_samples=sampling.num_samples,
        seed=sampling.seed,
        design=sampling.design,
        candidates=[
            Candidate(each.center, each.scale, each.dropout, temperature, each.nll(temperature))
            for each, temperature in zip(candidates, choice.temperatures, strict=True)
        ],
        nll=negative_log_likelihood(of_events, labels),
        baselines=_baselines(posterior, candidates, labels, folds),
        thresholds=calibrate_thresholds(probabilities, labels, risks=risks, confidence=confidence, coverages=coverages)
        if events.one_each
        else [],
        conformal=_quantiles(events, probabilities, levels),
    )
    _warn_where_not_better(tuning, posterior.title, chosen)
    _warn_at_the_edge(tuning, chosen.scale, scales)
    _warn_of_empty_promises(tuning, float(possible_labels(probabilities).sum(axis=1).mean()))
    tuned = posterior.with_tuning(tuning, scale=chosen.scale)
    reading: dict[str, Any] = {"data_collator": data_collator, "batch_size": batch_size}
    if not events.exclusive:  # no class is the nearest
        return tuned
    return with_ood_score(tuned, model, held_out.rows, labels, task=task, train_data=train_data, **reading)


def _candidates(
    posterior: WeightPosterior, scales: Sequence[float], logits_of: Callable[[Center, float, bool], CandidateLogits]
) -> Iterator[CandidateLogits]:
    """Predict the held-out examples in each of the ways to choose from, the cheapest first."""
    for center in posterior.centers:
        yield logits_of(center, 0.0, False)
    if posterior.is_point:
        return
    clouds = [(center, scale) for scale in scales for center in posterior.centers if center != "tail"]
    for center, scale in clouds:
        yield logits_of(center, scale, False)
    try:
        for center, scale in clouds:
            yield logits_of(center, scale, True)
    except NoDropoutError:
        return
    except DropoutError as problem:
        warnings.warn(f"Dropout in the draws was not tried. {problem}", UserWarning, stacklevel=3)


def _quantiles(events: CalibrationEvents, probabilities: np.ndarray, levels: Sequence[float]) -> list[ConformalQuantile]:
    """Calibrate sets of classes, or of labels; none where an example has several events, which depend on each other."""
    if not events.exclusive:
        return calibrate_label_quantiles(probabilities, events.labels, levels)
    return calibrate_quantiles(probabilities, events.labels, levels) if events.one_each else []


def _baselines(
    posterior: WeightPosterior, candidates: Sequence[CandidateLogits], labels: np.ndarray, folds: Sequence[np.ndarray]
) -> dict[str, float]:
    """NLL of what the posterior has to be better than, by name."""
    single = {each.center: each for each in candidates if each.scale == 0 and not each.dropout}
    if posterior.is_point:
        return {"without temperature": single["mean"].nll()}
    baselines = {"SWA": single["mean"].nll()}
    for name, center in _BASELINES:
        if center in single:
            scaled = cross_fitted([single[center]], folds)
            baselines[name] = negative_log_likelihood(scaled, labels)
    return baselines


def _warn_where_not_better(tuning: Tuning, title: str, chosen: CandidateLogits) -> None:
    is_draws = chosen.scale > 0 or chosen.dropout
    itself = None if is_draws else next((name for name, center in _BASELINES if center == chosen.center), None)
    better = [f"{name} ({nll:.4f})" for name, nll in tuning.baselines.items() if nll <= tuning.nll and name != itself]
    if better:
        warnings.warn(
            f"On {tuning.num_calibration} examples of {tuning.dataset!r}, {title} around the {CENTER_NAMES[chosen.center]} with scale "
            f"{chosen.scale:g} and temperature {tuning.temperature:.2f} is not better than {' and '.join(better)}: its mean negative "
            f"log-likelihood is {tuning.nll:.4f}, cross-fitted."
            + (
                f" Its draws cost {tuning.num_samples} times the compute and may not be worth it here; scale=0 predicts with the mean."
                if is_draws
                else ""
            ),
            UserWarning,
            stacklevel=3,
        )


def _warn_at_the_edge(tuning: Tuning, scale: float, scales: Sequence[float]) -> None:
    if len(set(scales)) > 1 and scale in (min(scales), max(scales)):
        energy = "" if tuning.relative_energy is None else f", a relative energy of {tuning.relative_energy:.2g},"
        warnings.warn(
            f"The chosen scale {scale:g}{energy} is at an end of scales={list(scales)}, and the best may lie beyond: tune again with scales "
            "on both sides of it.",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_empty_promises(tuning: Tuning, num_labels: float) -> None:
    levels = [
        f"{record.level:g}"
        for record in tuning.conformal
        if record.method == DEFAULT_SETS and holds_every_label(record, num_labels)
    ]
    if levels:
        warnings.warn(
            f"Prediction sets for {' and '.join(levels)} hold all {num_labels:.3g} labels of every example of {tuning.dataset!r}, so they carry no "
            "information: the model is too often wrong for that level, or there are too few examples to promise it. Ask for a lower level, "
            "or tune with more examples.",
            UserWarning,
            stacklevel=3,
        )


def _check_settings(sampling: Sampling, scales: Sequence[float]) -> None:
    given = [name for name in _CHOSEN if getattr(sampling, name) is not None]
    if given:
        raise SwagError(
            f"tune() chooses {given[0]}: leave it out of sampling, got {given[0]}={getattr(sampling, given[0])!r}. scales=[...] are the "
            "scales to choose from."
        )
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise SwagError(
            f"scales are factors of the covariance to try, finite and > 0 (no noise is tried in any case), got {list(scales)}."
        )


def _check_fractions(**fractions: Sequence[float]) -> None:
    for name, values in fractions.items():
        if not all(0 < value < 1 for value in values):
            raise SwagError(f"{name} must lie between 0 and 1, got {list(values)}.")
