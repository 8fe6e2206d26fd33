"""Tables of the study: means over seeds and paired differences with Student intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import t as student

Results = Mapping[str, Mapping[str, dict]]
REFERENCES = ("MAP, temperature", "best-validation MAP, temperature", "MC dropout, temperature")


def metric_table(results: Results, metric: str, recipes: Sequence[str]) -> str:
    """Return the mean of a metric over the seeds of each task, a recipe a line.

    Args:
        results: ``{task: {seed: {"recipes": {recipe: {metric: value}}}}}``.
        metric: "nll", "ece", "brier" or "accuracy".
        recipes: Which recipes.
    """
    lines = [f"| {metric} | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
    for recipe in recipes:
        means = [values(seeds, recipe, metric).mean() for seeds in results.values()]
        lines.append(f"| {recipe} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    counts = " | ".join(str(len(seeds)) for seeds in results.values())
    return "\n".join([*lines, f"| seeds | {counts} |"])


def difference_table(results: Results, recipes: Sequence[str], references: Sequence[str] = REFERENCES) -> str:
    """Return differences in test NLL to the references: mean, half of the 95 % interval over the seeds, and how many runs are lower."""
    lines = [f"| NLL minus that of | | {' | '.join([*results, 'all runs'])} |", f"|---|---|{'---:|' * (len(results) + 1)}"]
    for reference in references:
        for recipe in recipes:
            if recipe == reference:
                continue
            differences = [values(seeds, recipe, "nll") - values(seeds, reference, "nll") for seeds in results.values()]
            errors = [next(iter(seeds.values()))["recipes"][recipe]["standard_error"][reference] for seeds in results.values()]
            cells = [interval(each, error) for each, error in zip(differences, errors, strict=True)]
            cells.append(interval(np.concatenate(differences)))
            lines.append(f"| {reference} | {recipe} | {' | '.join(cells)} |")
    return "\n".join(lines)


def resampled_table(results: Results) -> str:
    """Return the mean NLL over resampled validation examples minus that of the first reference, a recipe a line."""
    tasks = {name: [seed["resampled"] for seed in seeds.values() if "resampled" in seed] for name, seeds in results.items()}
    runs = [run for seeds in tasks.values() for run in seeds]
    if not runs:
        return "No validation examples were resampled (--resamples)."
    lines = [
        f"| resampled: NLL minus {REFERENCES[0]} | {' | '.join([*tasks, 'lower'])} |",
        f"|---|{'---:|' * (len(tasks) + 1)}",
    ]
    for recipe in sorted(set.intersection(*map(set, runs))):
        differences = [[run[recipe] - run[REFERENCES[0]] for run in seeds] for seeds in tasks.values()]
        cells = [f"{np.mean(each):+.4f}" if each else "-" for each in differences]
        lines.append(
            f"| {recipe} | {' | '.join(cells)} | {sum(value < 0 for each in differences for value in each)}/{len(runs)} |"
        )
    return "\n".join(lines)


def detection_table(results: Results) -> str:
    """Return the mean AUROC of each score for out-of-distribution text."""
    scores = list(next(iter(next(iter(results.values())).values()))["detection"])
    lines = [f"| AUROC of OOD text | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
    for score in scores:
        means = [np.mean([seed["detection"][score] for seed in seeds.values()]) for seeds in results.values()]
        lines.append(f"| {score} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(lines)


def values(seeds: Mapping[str, dict], recipe: str, metric: str) -> np.ndarray:
    """Return a recipe's metric of every seed."""
    return np.array([seed["recipes"][recipe][metric] for seed in seeds.values()])


def interval(differences: np.ndarray, standard_error: float | None = None) -> str:
    """Return the mean, half of its 95 % interval, and how many differences are below 0.

    Args:
        differences: Of every seed. From two on the interval is Student's, over the seeds.
        standard_error: Over the test examples of a single seed; its interval, in brackets, says nothing about other trainings.
    """
    count, spread = len(differences), ""
    if count > 1:
        spread = f" ± {student.ppf(0.975, count - 1) * differences.std(ddof=1) / count**0.5:.3f}"
    elif standard_error is not None:
        spread = f" [± {1.96 * standard_error:.3f}]"
    return f"{differences.mean():+.3f}{spread} ({int((differences < 0).sum())}/{count})"
