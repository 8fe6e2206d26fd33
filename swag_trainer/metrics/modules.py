"""Metrics as modules of the `evaluate` library, which need no Hub and can be combined.

All take rows of probabilities as predictions and true classes as references, so that they combine:

    evaluate.combine([Accuracy(), CalibrationError(num_bins=10), Brier()]).compute(predictions=..., references=...)

Options go to the constructor: ``combine`` passes the arguments of ``compute`` to every member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from swag_trainer.metrics.calibration import Norm, Scheme, classwise_calibration_error, expected_calibration_error
from swag_trainer.metrics.scores import accuracy, brier_score, macro_f1, matthews_correlation, negative_log_likelihood
from swag_trainer.metrics.trainer import classification_metrics, compute_metrics

try:
    import evaluate
    from datasets import Features, Sequence, Value
except ImportError as error:
    raise ImportError(
        "swag_trainer.metrics.modules wraps the metrics for the evaluate library, which is not installed: "
        "pip install 'swag-trainer[evaluate]'. The functions in swag_trainer.metrics do without it."
    ) from error

__all__ = [
    "Accuracy",
    "Brier",
    "CalibrationError",
    "ClasswiseCalibrationError",
    "MacroF1",
    "MatthewsCorrelation",
    "NegativeLogLikelihood",
    "classification_metrics",
    "compute_metrics",
]

_INPUTS = """
Args:
    predictions: Probabilities. Shape (N, C), rows sum to 1.
    references: True classes. Shape (N,).
"""


class _ProbabilityMetric(evaluate.Metric):
    """A function of (probabilities, labels) as a module."""

    key: str
    description: str
    function: Callable[..., float]

    def __init__(self) -> None:
        # In memory: evaluate's file of predictions is the same for every process of a user, and locked.
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Sequence(Value("float64")), "references": Value("int64")})
        return evaluate.MetricInfo(description=self.description, citation="", inputs_description=_INPUTS, features=features)

    def _options(self) -> dict[str, Any]:
        return {}

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {self.key: type(self).function(np.asarray(predictions), np.asarray(references), **self._options())}


class Accuracy(_ProbabilityMetric):
    """`swag_trainer.metrics.scores.accuracy`, of probabilities."""

    key, description, function = "accuracy", "Fraction of examples whose most probable class is the true one.", accuracy


class MacroF1(_ProbabilityMetric):
    """`swag_trainer.metrics.scores.macro_f1`, of probabilities."""

    key, description, function = "macro_f1", "F1 of each class, averaged over the classes.", macro_f1


class MatthewsCorrelation(_ProbabilityMetric):
    """`swag_trainer.metrics.scores.matthews_correlation`, of probabilities."""

    key, description, function = "matthews_correlation", "Correlation of predictions and labels.", matthews_correlation


class NegativeLogLikelihood(_ProbabilityMetric):
    """`swag_trainer.metrics.scores.negative_log_likelihood`."""

    key, description, function = "nll", "Mean of -log(probability of the true class), in nats.", negative_log_likelihood


class Brier(_ProbabilityMetric):
    """`swag_trainer.metrics.scores.brier_score`."""

    key, description, function = "brier", "Mean squared distance to the true class, summed over the classes.", brier_score


class CalibrationError(_ProbabilityMetric):
    """`swag_trainer.metrics.calibration.expected_calibration_error`; the arguments are explained there."""

    key, description, function = "ece", "How far apart accuracy and confidence are.", expected_calibration_error

    def __init__(self, *, num_bins: int = 15, scheme: Scheme = "uniform", norm: Norm = "l1", debiased: bool = False) -> None:
        super().__init__()
        self._chosen = {"num_bins": num_bins, "scheme": scheme, "norm": norm, "debiased": debiased}

    def _options(self) -> dict[str, Any]:
        return self._chosen


class ClasswiseCalibrationError(_ProbabilityMetric):
    """`swag_trainer.metrics.calibration.classwise_calibration_error`; with "quantile" the adaptive calibration error."""

    key, description, function = "classwise_ece", "Calibration error averaged over the classes.", classwise_calibration_error

    def __init__(self, *, num_bins: int = 15, scheme: Scheme = "uniform") -> None:
        super().__init__()
        self._chosen = {"num_bins": num_bins, "scheme": scheme}

    def _options(self) -> dict[str, Any]:
        return self._chosen
