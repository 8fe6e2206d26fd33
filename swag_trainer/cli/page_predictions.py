"""Predictions that the page of `swag-trainer serve` shows: those of the pipeline, each draw's beside them, and a description of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from swag_trainer.adapters.positions import longest_input
from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.posterior.tuning import CENTER_NAMES
from swag_trainer.prediction.decisions import Decision, PredictionOptions, confidence, decide
from swag_trainer.prediction.predictive import Predictive
from swag_trainer.prediction.predictor import MonteCarloPredictor

if TYPE_CHECKING:
    from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline

MOST_CHARACTERS = 20_000
_DEFAULT_GOALS = (("risk", 0.05), ("coverage", 0.9))  # the slider starts at the tuned level nearest to the first of these


@dataclass(frozen=True, eq=False)
class TextPredictions:
    """Everything the page shows of one text.

    Attributes:
        labels: Names of the C classes, each only once.
        averaged: Prediction of the averaged draws, with its uncertainty; one example, with each draw's probabilities.
        mean: Probabilities of the posterior mean (SWA), at temperature 1; of a mixture the average over its members' means. Shape (C,).
        trained: Probabilities of the adapter's own weights, where those are not the posterior mean; else None. Shape (C,).
    """

    labels: list[str]
    averaged: Predictive
    mean: np.ndarray
    trained: np.ndarray | None

    @property
    def probabilities(self) -> np.ndarray:
        """Averaged over the draws. Shape (C,)."""
        return self.averaged.probabilities[0]

    @property
    def draws(self) -> np.ndarray:
        """Of each draw. Shape (S, C)."""
        return self.averaged.draw_probabilities[:, 0]

    def likeliest(self, count: int) -> list[int]:
        """Return the classes with the highest averaged probability, the likeliest first."""
        return np.argsort(-self.probabilities, kind="stable")[:count].tolist()

    def by_name(self, probabilities: np.ndarray) -> dict[str, float]:
        """Return probabilities of shape (C,) as a dictionary."""
        return dict(zip(self.labels, probabilities.tolist(), strict=True))


class PagePredictions:
    """Predicts texts as a pipeline does, and keeps each draw's prediction.

    Args:
        classify: The pipeline, whose draws, scale and temperature are used: those that it was given or those of its posterior.

    Raises:
        SwagError: The model's classes do not exclude each other, or it is a regression.
    """

    def __init__(self, classify: SwagTextClassificationPipeline) -> None:
        model, self.posterior = classify.model, classify.posterior
        self.first_decision = _first_decision(classify.options, self.posterior)
        self.sampling = classify.options.resolved(self.posterior)
        self._swag = MonteCarloPredictor(model, self.posterior, self.sampling, progress=False)
        if self._swag.link != "softmax":
            raise SwagError(
                "The page is for classes that exclude each other; this model is for several labels or a regression."
            )
        config = model.config
        self.labels = _distinct([config.id2label[index] for index in range(config.num_labels)])
        self._tokenizer = classify.tokenizer
        self._longest = longest_input(self._tokenizer, model) or math.inf
        at_mean = replace(self.sampling, scale=0.0, temperature=1.0, dropout=False, center="mean")
        self._mean = MonteCarloPredictor(model, self.posterior.with_features(None), at_mean, progress=False)
        self._trained = (
            None if self.posterior.adapter_holds_mean else _at(model, self.posterior, _adapter_vector(self.posterior))
        )

    @property
    def has_trained_weights(self) -> bool:
        """Whether the adapter's own weights differ from the posterior mean, and are shown as well."""
        return self._trained is not None

    def __call__(self, text: str) -> TextPredictions:
        """Predict one text.

        Raises:
            SwagError: The text is empty, or longer than the model's maximum.
        """
        if not text.strip():
            raise SwagError("There is nothing to classify: type a text.")
        if len(text) > MOST_CHARACTERS:
            raise SwagError(f"The text has {len(text):,} characters; this page takes {MOST_CHARACTERS:,} at most.")
        inputs = self._tokenizer(text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        if length > self._longest:
            raise SwagError(
                f"The text has {length} tokens, the model reads {self._longest}. Shorten it; it is not truncated silently."
            )
        return TextPredictions(
            labels=self.labels,
            averaged=self._swag.predict(inputs, return_draws=True),
            mean=self._mean.predict(inputs).probabilities[0],
            trained=None if self._trained is None else self._trained.predict(inputs).probabilities[0],
        )

    def decision(self, threshold: float) -> Decision:
        """Return the decision at a threshold of the slider; the slider rounds, so one near the first threshold is the first."""
        first = self.first_decision
        if math.isclose(threshold, first.threshold, abs_tol=5e-4):
            return first
        return Decision(threshold, "the threshold set on this page")


def verdict(predictions: TextPredictions, decision: Decision) -> str:
    """Describe whether the label is given or the text is deferred to a human, and why."""
    names = dict(enumerate(predictions.labels))
    best = predictions.likeliest(1)[0]
    score = float(confidence(predictions.probabilities[None])[0])
    row = decision.apply([{"label": names[best], "score": score}], predictions.probabilities, names)[0]
    if row["label"] is None:
        return f"Defer to a human. {row['reason']} (The likeliest label is {row['top_label']}.)"
    if not decision:
        return f"Label: {row['label']}. Its score is {score:.3f}; with a threshold of 0 every text gets a label."
    return f"Label: {row['label']}. Its score {score:.3f} is not below {decision.threshold:.3f}, {decision.reason}."


def uncertainty(predictions: TextPredictions) -> str:
    """Describe entropy and mutual information, with their values in nats."""
    entropy, information = float(predictions.averaged.entropy[0]), float(predictions.averaged.mutual_information[0])
    most, count = math.log(len(predictions.labels)), len(predictions.draws)
    how = _phrase(entropy / most, (0.1, "certain"), (0.35, "fairly certain"), (0.7, "uncertain"), (2, "close to guessing"))
    lines = [f"Entropy {entropy:.3f} nats, of {most:.3f} at most for {len(predictions.labels)} classes: {how}."]
    if count == 1:
        return lines[0] + "\nThis is the prediction of a single set of weights (scale 0): there is no disagreement to measure."
    fraction = information / entropy if entropy > 0 else 0.0
    why = _phrase(
        fraction,
        (0.05, "the draws agree; the uncertainty lies in the text"),
        (0.2, "the draws differ a little"),
        (2, "the draws disagree: more training data could reduce the uncertainty"),
    )
    votes = int((predictions.draws.argmax(axis=1) != predictions.likeliest(1)[0]).sum())
    lines.append(f"Mutual information {information:.3f} nats, {fraction:.0%} of the entropy: {why}.")
    lines.append(f"{votes} of {count} draws put another class first.")
    return "\n".join(lines)


def circumstances(page: PagePredictions, name: str) -> str:
    """Describe what the predictions come from: the model, the draws, and the data of the tuning."""
    posterior, sampling = page.posterior, page.sampling
    lines = [
        f"{name}, on {posterior.adapter.base_model or 'a base model without a name'}",
        f"{sampling.num_samples} draws (seed {sampling.seed}) of {_source(posterior)}; "
        f"around the {CENTER_NAMES[sampling.center or 'mean']}{', with dropout' if sampling.dropout else ''}; scale {sampling.scale:g}, "
        f"temperature {sampling.temperature:.3g}",
    ]
    tuning = posterior.tuning
    if tuning is None:
        lines.append("Not tuned on held-out data: scores are not calibrated, and a threshold guarantees nothing.")
    else:
        data = " ".join(filter(None, [repr(tuning.dataset), tuning.split]))
        others = "by cross-fitting" if tuning.num_folds else f"on {tuning.num_calibration} others"
        lines.append(f"Tuned on {tuning.num_examples} examples of {data}, thresholds {others}.")
    if not page.first_decision:
        lines.append("No calibrated threshold applies to these predictions: the slider starts at 0, and nothing is deferred.")
    return "\n".join(lines)


def _source(posterior: WeightPosterior) -> str:
    snapshots, rank = posterior.metadata().get("num_collected"), getattr(posterior, "rank", None)
    if snapshots is None or rank is None:
        return f"a posterior of kind {posterior.kind!r}"
    return f"{snapshots} snapshots, rank {rank}"


def _first_decision(options: PredictionOptions, posterior: WeightPosterior) -> Decision:
    """Return the decision that the pipeline was given.

    Without one it is a threshold that `swag_trainer.tune` calibrated: for a risk near 5 %, where one could be guaranteed, else for a
    coverage near 90 %. None applies where there is none for these draws.
    """
    given = decide(options, posterior)
    if given.threshold > 0 or posterior.tuning is None:
        return Decision(given.threshold, given.reason)
    for goal, wanted in _DEFAULT_GOALS:
        records = [each for each in posterior.tuning.thresholds if each.goal == goal and each.threshold is not None]
        if records:
            nearest = min(records, key=lambda each: abs(each.target - wanted))
            try:
                return decide(options.updated({goal: nearest.target, "prediction_set": None}), posterior)
            except SwagError:  # calibrated for other draws, another scale or temperature
                return Decision()
    return Decision()


def _adapter_vector(posterior: WeightPosterior) -> torch.Tensor:
    """Return the weights in the adapter's file. Shape (P,)."""
    return posterior.layout.flatten({key: posterior.adapter.tensors[key] for key in posterior.layout.keys})


def _at(model: torch.nn.Module, posterior: WeightPosterior, vector: torch.Tensor) -> MonteCarloPredictor:
    return MonteCarloPredictor(model, PointPosterior.at(vector, posterior), progress=False)


def _phrase(value: float, *steps: tuple[float, str]) -> str:
    return next(phrase for limit, phrase in steps if value < limit)


def _distinct(labels: list[str]) -> list[str]:
    """Number the classes that share a name: a dictionary would drop one."""
    return [f"{label} ({index})" if labels.count(label) > 1 else str(label) for index, label in enumerate(labels)]
