"""Predictions that the page of `swag-trainer serve` shows: those of the pipeline, each draw's beside them, and thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.page_thresholds import offered_thresholds
from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.prediction.predictive import Predictive
from swag_trainer.prediction.predictor import MonteCarloPredictor

if TYPE_CHECKING:
    from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline

MOST_CHARACTERS = 20_000


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
        self.thresholds = offered_thresholds(classify.options, self.posterior)
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
    def num_predictions(self) -> int:
        """S, how many sets of weights predict each text: one where the scale is 0 and nothing drops out."""
        return self.sampling.num_samples if self.sampling.scale > 0 or self.sampling.dropout else 1

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


def _adapter_vector(posterior: WeightPosterior) -> torch.Tensor:
    """Return the weights in the adapter's file. Shape (P,)."""
    return posterior.layout.flatten({key: posterior.adapter.tensors[key] for key in posterior.layout.keys})


def _at(model: torch.nn.Module, posterior: WeightPosterior, vector: torch.Tensor) -> MonteCarloPredictor:
    return MonteCarloPredictor(model, PointPosterior.at(vector, posterior), progress=False)


def _distinct(labels: list[str]) -> list[str]:
    """Number the classes that share a name: a dictionary would drop one."""
    return [f"{label} ({index})" if labels.count(label) > 1 else str(label) for index, label in enumerate(labels)]
