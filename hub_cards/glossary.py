"""Plain names of the metrics and methods in a model card's table, for readers who know neither."""

from __future__ import annotations

from collections.abc import Iterable

from swag_trainer.evaluation.names import DETECTION_METRICS, METRIC_NAMES, detection, has_temperature, without_temperature

_METRICS = {
    "accuracy": "fraction of right labels",
    "macro_f1": "F1 score, averaged over the classes",
    "nll": "negative log-likelihood of the true label in nats, the lower the better; it punishes confident mistakes most",
    "ece": "expected calibration error: how far scores lie from the fraction that is right, in bins of equal width, the lower the better",
    "ece_quantile": "the same in bins of equally many examples",
    "brier": "Brier score: squared distance between probabilities and truth, the lower the better",
    "aurc": "area under the risk-coverage curve: mean fraction of wrong labels when the least certain examples are left out first, the lower the better",
    "augrc": "area under the generalised risk-coverage curve: mean fraction of all examples that are accepted with a wrong label, the lower the better",
}
_DETECTION = {
    "auroc": "how well a score tells out-of-distribution examples from others: 1 is perfect, 0.5 is chance",
    "aupr": "area under the precision-recall curve of the same",
    "fpr95": "fraction of ordinary examples flagged where 95 % of the out-of-distribution ones are, the lower the better",
}
_METHODS = {
    "MAP": "one pass with the weights that training ended with, or with those in the adapter's file (maximum a posteriori: no draws)",
    "SWA": "one pass with the posterior mean (stochastic weight averaging)",
    "SWAG": "averaged predictions of draws from the posterior",
    "MultiSWA": "averaged predictions of one pass with each member's mean",
    "MultiSWAG": "averaged predictions of draws from the posteriors of several trainings",
    "MC dropout": "averaged predictions of passes with dropout",
    "Ensemble": "averaged predictions of one pass with the final weights of each of several trainings (deep ensemble)",
    "TFB": "averaged predictions of draws of LoRA's A around MAP's weights, with as much noise as the training loss allows",
    "Laplace (head)": "averaged predictions of draws of the classification head around MAP's weights, by the curvature of the loss",
    "Laplace (LoRA)": "averaged predictions of draws of the adapter and the head around MAP's weights, by the curvature of the loss",
}


def metrics_explained(metrics: Iterable[str]) -> dict[str, str]:
    """Return what the metrics of a table mean, by the names that the table shows; those that are not known are left out."""
    explained: dict[str, str] = {}
    for metric in metrics:
        detected = detection(metric)
        if detected is not None:
            explained[DETECTION_METRICS[detected[0]]] = _DETECTION[detected[0]]
        elif metric.lower() in _METRICS:
            explained[METRIC_NAMES.get(metric, metric)] = _METRICS[metric.lower()]
    return explained


def methods_explained(names: Iterable[str]) -> dict[str, str]:
    """Return what the methods of a table are, by their names there; those that are not known are left out."""
    explained: dict[str, str] = {}
    for name in names:
        plain = without_temperature(name)
        if plain in _METHODS:
            scaled = f"the same as {plain}, its logits divided by one temperature"
            explained[name] = scaled if has_temperature(name) else _METHODS[plain]
    return explained
