"""Out-of-distribution detection in the study: entropy of the predictions, and the distance to the nearest class in the head's features."""

from __future__ import annotations

import numpy as np
from scipy.special import entr

from study.catalogue import MAP, MEAN, SWAG_MEAN
from study.predictions import Draw, Run
from study.recipes import average
from swag_trainer.metrics.ood import auroc
from swag_trainer.posterior.features import fit


def detection(run: Run) -> dict[str, float]:
    """Return the AUROC of each score for telling out-of-distribution text from test examples."""

    def entropy(draw: Draw, split: str) -> np.ndarray:
        return entr(average(run.logits(draw, split), 1.0)).sum(-1)

    def distance(draw: Draw, split: str) -> np.ndarray:
        train = fit(run.features(draw, "train"), run.data.splits["train"].labels)
        return train.distance(run.features(draw, split))

    scores = {
        "entropy of MAP": lambda split: entropy(MAP, split),
        "entropy of SWA": lambda split: entropy(MEAN, split),
        "entropy of SWAG": lambda split: entropy(SWAG_MEAN, split),
        "distance at the mean": lambda split: distance(MEAN, split),
        "distance at MAP": lambda split: distance(MAP, split),
    }
    return {name: float(auroc(score("test"), score("ood"))) for name, score in scores.items()}
