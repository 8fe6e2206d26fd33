"""Tables of the paper: accuracy, NLL, ECE and Brier score of each method and question set, mean and standard deviation over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from methods import Draws
from scipy.stats import entropy

from swag_trainer.metrics import accuracy, auroc, brier_score, expected_calibration_error, negative_log_likelihood

METRICS = {
    "accuracy": accuracy,
    "NLL": negative_log_likelihood,
    "ECE": expected_calibration_error,
    "Brier": brier_score,
}
# Of the entropy, between the set "test" and another.
AUROC = "AUROC"


def metrics(draws: Draws, labels: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return the metrics of a method's averaged probabilities for each set but "validation", by name of the set."""
    averaged = {name: each.mean(axis=0) for name, each in draws.items() if name != "validation"}
    found = {
        name: {metric: float(function(each, labels[name])) for metric, function in METRICS.items()}
        for name, each in averaged.items()
    }
    for name, each in averaged.items():
        if name != "test":
            found[name][AUROC] = float(auroc(entropy(averaged["test"], axis=1), entropy(each, axis=1)))
    return found


def table(results: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]], split: str) -> str:
    """Return a table of Markdown with a row for each method. ECE has 15 bins of equal width.

    Args:
        results: Of each method what `metrics` returned: for each seed, or once for an ensemble of all.
        split: The set.
    """
    names = list(next(iter(results.values()))[0][split])
    lines = [f"| {split} | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for method, seeds in results.items():
        values = np.array([[seed[split][name] for name in names] for seed in seeds])
        spread = [f" ± {std:.3f}" for std in values.std(axis=0, ddof=1)] if len(seeds) > 1 else [""] * len(names)
        cells = [f"{mean:.3f}{std}" for mean, std in zip(values.mean(axis=0), spread, strict=True)]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
