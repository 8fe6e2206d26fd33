"""Scale of the study: the validation loss of SWAG at factors of its covariance, each with a temperature of its own."""

from __future__ import annotations

import numpy as np
from scipy.stats import t

from study.predictions import Draw, Run
from study.recipes import average
from swag_trainer.metrics.scores import negative_log_likelihood
from swag_trainer.metrics.temperature import fit_temperature

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
USUAL = 1.0


def validation_nll(run: Run) -> dict[str, float]:
    """Return the NLL of the validation examples by scale. One temperature is fitted to the same examples at every scale."""
    labels, found = run.data.splits["validation"].labels, {}
    for scale in SCALES:
        logits = run.logits(Draw("mean", scale=scale), "validation").astype(np.float64)
        found[str(scale)] = float(negative_log_likelihood(average(logits, fit_temperature(logits, labels)), labels))
    return found


def scale_table(results: dict[str, dict[str, dict]]) -> str:
    """Return how much higher the validation NLL is than at scale 1, in the mean over tasks and seeds, and on how many runs it is lower."""
    runs = [seed["scales"] for seeds in results.values() for seed in seeds.values() if "scales" in seed]
    if len(runs) < 2:
        return "The scales of the covariance were not compared."
    lines = ["| scale | validation NLL minus that at scale 1 |", "|---:|---:|"]
    for scale in map(str, SCALES):
        differences = np.array([run[scale] - run[str(USUAL)] for run in runs])
        half = t.ppf(0.975, len(runs) - 1) * differences.std(ddof=1) / len(runs) ** 0.5
        lines.append(f"| {scale} | {differences.mean():+.4f} ± {half:.4f} ({int((differences < 0).sum())}/{len(runs)}) |")
    return "\n".join(lines)
