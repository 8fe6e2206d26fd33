"""Classification metrics for ``Trainer(compute_metrics=...)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import softmax

from swag_trainer.metrics.calibration import expected_calibration_error
from swag_trainer.metrics.checks import checked_numbers
from swag_trainer.metrics.scores import accuracy, brier_score, macro_f1, matthews_correlation, negative_log_likelihood


def classification_metrics(*, from_logits: bool = True, num_bins: int = 15) -> Callable[[Any], dict[str, float]]:
    """Make a ``compute_metrics`` for classes that exclude each other.

    Args:
        from_logits: Whether the model gives logits; False for probabilities.
        num_bins: Bins of the calibration error, of equal width.

    Returns:
        A function of an ``EvalPrediction``: {"accuracy", "macro_f1", "matthews_correlation", "nll", "ece", "brier"}. It raises a
        ValueError for predictions and labels that do not fit.
    """

    def compute(eval_prediction: Any) -> dict[str, float]:
        predictions = eval_prediction.predictions
        if isinstance(predictions, tuple):  # logits, and whatever else the model returned
            predictions = predictions[0]
        predictions = checked_numbers("Predictions", predictions, ndim=2)
        labels = np.asarray(eval_prediction.label_ids)
        probabilities = softmax(predictions, axis=1) if from_logits else predictions
        return {
            "accuracy": accuracy(probabilities, labels),
            "macro_f1": macro_f1(probabilities, labels),
            "matthews_correlation": matthews_correlation(probabilities, labels),
            "nll": negative_log_likelihood(probabilities, labels),
            "ece": expected_calibration_error(probabilities, labels, num_bins=num_bins),
            "brier": brier_score(probabilities, labels),
        }

    return compute


def compute_metrics(eval_prediction: Any) -> dict[str, float]:
    """`classification_metrics` with its defaults: ``Trainer(compute_metrics=compute_metrics)``."""
    return classification_metrics()(eval_prediction)
