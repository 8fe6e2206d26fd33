"""A prediction label by label: scores with their uncertainty in the form that the classification pipelines of transformers have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import Decision, PredictionOptions, decide
from swag_trainer.prediction.predictive import Predictive, RegressionPredictive
from swag_trainer.tasks.base import Link

# By the values of the enumerations "function_to_apply", of which every pipeline of transformers has its own.
_LINKS: Mapping[str, Link] = {"softmax": "softmax", "sigmoid": "sigmoid", "none": "identity"}


def link_of(function_to_apply: Any) -> Link | None:
    """Return how logits become predictions for a ``ClassificationFunction`` of transformers; None where none was asked for."""
    return _LINKS.get(getattr(function_to_apply, "value", None))


@dataclass(frozen=True, eq=False)
class LabelScores:
    """One example's prediction.

    Attributes:
        scores: Of the C labels. Shape (C,).
        rows: ``label``, ``score`` and uncertainty of each, in the order of the logits.
        ood_score: None where the posterior has none.
    """

    scores: np.ndarray
    rows: list[dict[str, Any]]
    ood_score: float | None = None

    @classmethod
    def of(cls, predictive: Predictive | RegressionPredictive, labels: Mapping[int, str]) -> LabelScores:
        """Return the scores of a predictive of one event; a regression has the draws' ``std`` with each number.

        Args:
            predictive: The prediction.
            labels: Names of the labels by their places, as ``config.id2label``.
        """
        ood_score = None
        if isinstance(predictive, RegressionPredictive):
            scores, extra = predictive.mean[0], [{"std": float(std)} for std in predictive.std[0]]
        else:
            uncertainty = {
                "entropy": float(predictive.entropy[0]),
                "mutual_information": float(predictive.mutual_information[0]),
            }
            if predictive.between_members is not None:
                uncertainty["between_members"] = float(predictive.between_members[0])
            if predictive.ood_score is not None:
                uncertainty["ood_score"] = ood_score = float(predictive.ood_score[0])
            scores, extra = predictive.probabilities[0], [uncertainty] * len(predictive.probabilities[0])
        rows = [{"label": labels[index], "score": float(score), **extra[index]} for index, score in enumerate(scores)]
        return cls(scores, rows, ood_score)

    def ranked(self, top_k: int | None) -> list[dict[str, Any]]:
        """Return the labels with the highest scores, the highest first; all of them for None."""
        return sorted(self.rows, key=lambda row: row["score"], reverse=True)[:top_k]

    def decided(self, decision: Decision, rows: list[dict[str, Any]], labels: Mapping[int, str]) -> list[dict[str, Any]]:
        """Return rows, the first one the likeliest, with what is decided upon it."""
        if not decision:
            return rows
        return decision.apply(rows, self.scores, dict(labels), ood_score=self.ood_score)


def decision_for(options: PredictionOptions, posterior: WeightPosterior, link: Link, *, own: Link) -> Decision:
    """Return what the options ask to be decided.

    Args:
        options, posterior: As for `decide`.
        link: How the logits become predictions in this call.
        own: How they do for the model, which thresholds and sets were calibrated for.

    Raises:
        SwagError: As `decide`; or predictions of this kind cannot be decided upon in that way.
    """
    decision = decide(options, posterior)
    if not decision or link == own == "softmax":
        return decision
    if link == "identity":
        raise SwagError(
            "Abstaining is for classes that exclude each other, and sets are for classes or labels; these predictions are plain numbers."
        )
    if link == "sigmoid" and (decision.threshold > 0 or decision.ood is not None):
        raise SwagError(
            "Abstaining withholds the likeliest of classes that exclude each other; these predictions are judged label by label, so there is "
            "none. Compare the score of each label with a number of your own, or ask for prediction_set=..."
        )
    if link != own and decision.sets is not None:
        raise SwagError(
            f"Prediction sets were calibrated for the model's own {own!r}, and function_to_apply asks for {link!r}, whose scores mean something "
            "else: leave it out."
        )
    return decision if decision.sets is None else replace(decision, sets=replace(decision.sets, exclusive=link == "softmax"))
