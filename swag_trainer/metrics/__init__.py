"""Metrics of probabilistic predictions: calibration, proper scores, selective prediction, OOD detection, conformal sets."""

from swag_trainer.metrics.bootstrap import Interval, bootstrap_interval
from swag_trainer.metrics.calibration import (
    ReliabilityBins,
    adaptive_calibration_error,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
)
from swag_trainer.metrics.conformal import ConformalSets, calibrate_conformal, calibrate_label_sets
from swag_trainer.metrics.ood import aupr, auroc, fpr_at_tpr, uncertainty_scores
from swag_trainer.metrics.regression import (
    ensemble_coverage,
    ensemble_crps,
    gaussian_coverage,
    gaussian_crps,
    gaussian_nll,
)
from swag_trainer.metrics.scores import (
    BrierDecomposition,
    accuracy,
    brier_decomposition,
    brier_score,
    macro_f1,
    matthews_correlation,
    negative_log_likelihood,
)
from swag_trainer.metrics.selective import (
    RiskCoverage,
    area_under_generalised_risk_coverage,
    area_under_risk_coverage,
    coverage_at_risk,
    excess_area_under_risk_coverage,
    risk_coverage_curve,
    threshold_for_coverage,
    threshold_for_risk,
)
from swag_trainer.metrics.temperature import fit_temperature
from swag_trainer.metrics.trainer import classification_metrics, compute_metrics

__all__ = [
    "BrierDecomposition",
    "ConformalSets",
    "Interval",
    "ReliabilityBins",
    "RiskCoverage",
    "accuracy",
    "adaptive_calibration_error",
    "area_under_generalised_risk_coverage",
    "area_under_risk_coverage",
    "aupr",
    "auroc",
    "bootstrap_interval",
    "brier_decomposition",
    "brier_score",
    "calibrate_conformal",
    "calibrate_label_sets",
    "classification_metrics",
    "classwise_calibration_error",
    "compute_metrics",
    "coverage_at_risk",
    "ensemble_coverage",
    "ensemble_crps",
    "excess_area_under_risk_coverage",
    "expected_calibration_error",
    "fit_temperature",
    "fpr_at_tpr",
    "gaussian_coverage",
    "gaussian_crps",
    "gaussian_nll",
    "macro_f1",
    "matthews_correlation",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "reliability_bins",
    "risk_coverage_curve",
    "threshold_for_coverage",
    "threshold_for_risk",
    "uncertainty_scores",
]
