"""Names of metrics and methods as tables and cards show them."""

from __future__ import annotations

METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "nll": "NLL",
    "ece": "ECE",
    "ece_quantile": "ECE, equal mass",
    "brier": "Brier score",
    "aurc": "AURC",
    "augrc": "AUGRC",
}
# What out-of-distribution (OOD) examples are detected by, and how well: every metric of the detection is "<of these>_<of those>".
DETECTION_METRICS = {"auroc": "AUROC", "aupr": "AUPR", "fpr95": "FPR at TPR 95 %"}
DETECTION_SCORES = {
    "entropy": "entropy",
    "one_minus_max": "1 - max",
    "mutual_information": "mutual information",
    "energy": "energy",
    "ood_score": "OOD score",
}
_TEMPERATURE = ", temperature"


def detection(metric: str) -> tuple[str, str] | None:
    """Split the name of a metric of OOD detection into metric and score; None for any other metric.

    >>> detection("auroc_ood_score")
    ('auroc', 'ood_score')
    >>> detection("accuracy")
    """
    kind, _, score = metric.partition("_")
    return (kind, score) if kind in DETECTION_METRICS and score in DETECTION_SCORES else None


def has_temperature(method: str) -> bool:
    """Whether a method's name says that its logits are divided by a temperature that was fitted for it."""
    return method.endswith(_TEMPERATURE)


def without_temperature(method: str) -> str:
    """Return the name of the method that a temperature was fitted for; that of any other method as it is.

    >>> without_temperature("MAP, temperature"), without_temperature("MAP")
    ('MAP', 'MAP')
    """
    return method.removesuffix(_TEMPERATURE)
