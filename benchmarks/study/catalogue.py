"""Catalogue of the study: the candidates that are drawn from, and every recipe by name, in parts that cost more and more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from study.fits import head_laplace, in_closed_form, lora_laplace, tfb
from study.predictions import Draw, Run
from study.recipes import (
    Outcome,
    average,
    choice,
    distilled,
    plain,
    pooled,
    posterior_average,
    scaled,
    stacking,
    temperature_per_draw,
    without_common_factor,
)
from study.scales import SCALES
from swag_trainer.calibration.cross_fitting import CandidateLogits, choose
from swag_trainer.metrics.temperature import fit_temperature, penalised_nll

OLD_PRIOR_STD = 0.5

MAP, BEST, BEST_HELD = Draw("map", collected="decay"), Draw("best", collected="decay"), Draw("best")
MEAN, TAIL, LAST = Draw("mean"), Draw("tail"), Draw("last")
SWAG_MEAN, SWAG_LAST = Draw("mean", scale=1.0), Draw("last", scale=1.0)
MASKED_MEAN, MASKED_LAST = Draw("mean", scale=1.0, dropout=True), Draw("last", scale=1.0, dropout=True)
MC_MAP, MC_BEST = Draw("map", dropout=True, collected="decay"), Draw("best", dropout=True, collected="decay")
CANDIDATES = (MEAN, TAIL, LAST, SWAG_MEAN, SWAG_LAST, MASKED_MEAN, MASKED_LAST)


def new_tune(run: Run) -> Outcome:
    """What `swag_trainer.tune` chooses among its candidates."""
    labels = run.data.splits["validation"].labels
    ways = [
        CandidateLogits(draw.center, draw.scale, draw.dropout, run.logits(draw, "validation").astype(np.float64), labels)
        for draw in CANDIDATES
    ]
    chosen = choose(ways, np.arange(len(labels)))
    best = CANDIDATES[chosen.best]
    return Outcome(average(run.logits(best, "test"), chosen.temperature), f"{best.name}, T {chosen.temperature:.3f}")


def old_tune(run: Run) -> Outcome:
    """The `tune` of 0.3: seven scales, each with a temperature under a wide prior, chosen on half of the validation examples."""
    labels = run.data.splits["validation"].labels
    order = np.random.default_rng(run.seed).permutation(len(labels))
    half = order[: len(order) - len(order) // 2]
    found = []
    for scale in SCALES:
        logits = run.logits(Draw("mean", scale=scale), "validation")[:, half].astype(np.float64)
        temperature = fit_temperature(logits, labels[half], prior_std=OLD_PRIOR_STD)
        found.append((penalised_nll(logits, labels[half], temperature, prior_std=OLD_PRIOR_STD), scale, temperature))
    _, scale, temperature = min(found)
    logits = run.logits(Draw("mean", scale=scale), "test")
    return Outcome(average(logits, temperature), f"scale {scale:g}, T {temperature:.3f}")


RECIPES: dict[str, Callable[[Run], Outcome]] = {
    "MAP": plain(MAP),
    "best-validation MAP": plain(BEST),
    "MAP, temperature": scaled(MAP),
    "best-validation MAP, temperature": scaled(BEST),
    "MC dropout, temperature": scaled(MC_MAP),
    "best-validation MC dropout, temperature": scaled(MC_BEST),
    "rival that chooses": choice((MAP, BEST, MC_MAP)),
    "SWA": plain(MEAN),
    "SWA, temperature": scaled(MEAN),
    "SWAG, untuned": plain(SWAG_MEAN),
    "SWAG, temperature": scaled(SWAG_MEAN),
    "old tune": old_tune,
    "new tune": new_tune,
    "averaging the candidates of new tune": stacking(CANDIDATES, 1.0),
}

IDEAS: dict[str, Callable[[Run], Outcome]] = {
    "MAP, temperature with prior sd .5": scaled(MAP, OLD_PRIOR_STD),
    "SWAG, temperature with prior sd .5": scaled(SWAG_MEAN, OLD_PRIOR_STD),
    "stacking, penalty .2": stacking(CANDIDATES, 0.2),
    "stacking, penalty 5": stacking(CANDIDATES, 5.0),
    "equal average of all candidates": stacking(CANDIDATES, 1e6),
    "average by validation likelihood": posterior_average(CANDIDATES),
    "average by validation likelihood^.3": posterior_average(CANDIDATES, 0.3),
    "stacking without dropout": stacking(CANDIDATES[:5], 1.0),
    "stacking without dropout, prior sd .1": stacking(CANDIDATES[:5], 1.0, prior_std=0.1),
    "equal average of SWAG at mean and last": stacking((SWAG_MEAN, SWAG_LAST), 1e6),
    "MAP, temperature with prior sd .1": scaled(MAP, 0.1),
    "SWAG, temperature with prior sd .1": scaled(SWAG_MEAN, 0.1),
    "pooled, 10 passes": pooled(dict(zip(CANDIDATES, (1, 1, 1, 2, 2, 2, 1), strict=True))),
    "pooled, 43 passes": pooled(dict(zip(CANDIDATES, (1, 1, 1, 10, 10, 10, 10), strict=True))),
    "pooled, three centers": pooled(dict.fromkeys(CANDIDATES[:3], 1)),
    "pooled, SWAG at mean and last, 10 passes": pooled({SWAG_MEAN: 5, SWAG_LAST: 5}),
    "choosing without dropout": choice(CANDIDATES[:5]),
    "choosing without the prior against dropout": choice(CANDIDATES, dropout_nats=0.0),
    "choosing, 1 nat for SWAG at the mean": choice(CANDIDATES, favourite=SWAG_MEAN, nats=1.0),
    "choosing, 2 nats for SWAG at the mean": choice(CANDIDATES, favourite=SWAG_MEAN, nats=2.0),
    "choosing, 4 nats for SWAG at the mean": choice(CANDIDATES, favourite=SWAG_MEAN, nats=4.0),
    "choosing among centers": choice(CANDIDATES[:3]),
    "choosing, best-validation step as a center": choice((*CANDIDATES, BEST_HELD)),
    "tail, temperature": scaled(TAIL),
    "last, temperature": scaled(LAST),
    "SWAG at last, temperature": scaled(SWAG_LAST),
    "SWAG and dropout, temperature": scaled(MASKED_MEAN),
    "SWAG and dropout at last, temperature": scaled(MASKED_LAST),
    "temperature per draw": temperature_per_draw(SWAG_MEAN),
    "without common factor": without_common_factor(SWAG_MEAN, MEAN, 1.0),
    "without common factor, spread 2": without_common_factor(SWAG_MEAN, MEAN, 2.0),
    "without common factor, spread 4": without_common_factor(SWAG_MEAN, MEAN, 4.0),
}

# Each costs passes of its own over validation and test examples.
VARIANTS: dict[str, Callable[[Run], Outcome]] = {
    "SWAG of the head, dropout below, temperature": scaled(Draw("mean", scale=1.0, dropout=True, head_only=True)),
    "SWA from .5, temperature": scaled(Draw("mean", start=0.5)),
    "SWA from .7, temperature": scaled(Draw("mean", start=0.7)),
    "SWAG from .5, temperature": scaled(Draw("mean", scale=1.0, start=0.5)),
    "SWAG of 15 snapshots, temperature": scaled(Draw("mean", scale=1.0, snapshots=15, rank=15)),
    "SWAG of 60 snapshots, K 20, temperature": scaled(Draw("mean", scale=1.0, snapshots=60)),
    "SWAG, K 5, temperature": scaled(Draw("mean", scale=1.0, rank=5)),
    "SWAG, scale 4, temperature": scaled(Draw("mean", scale=4.0)),
}

# These need trainings of their own, see `SCHEDULES`.
RATES: dict[str, Callable[[Run], Outcome]] = {
    f"{name}, rate {rate}, temperature": scaled(Draw(center, scale, collected=rate))
    for rate in ("halved", "floor")
    for name, center, scale in (("SWA", "mean", 0.0), ("last", "last", 0.0), ("SWAG", "mean", 1.0))
}
SMOOTHING: dict[str, Callable[[Run], Outcome]] = {
    "MAP, label smoothing .1": plain(Draw("map", collected="smoothed")),
    "MAP, label smoothing .1, temperature": scaled(Draw("map", collected="smoothed")),
}
FITS: dict[str, Callable[[Run], Outcome]] = {
    "TFB, temperature": tfb,
    "Laplace (head), temperature": head_laplace("marginal likelihood"),
    "Laplace (head), prior by validation, temperature": head_laplace("validation"),
    "Laplace (head), prior by validation, in closed form, temperature": head_laplace("validation", in_closed_form),
    "Laplace (LoRA), temperature": lora_laplace,
}
DISTILLATION: dict[str, Callable[[Run], Outcome]] = {
    "SWAG, distilled, temperature": distilled(SWAG_MEAN),
    "SWAG and dropout, distilled, temperature": distilled(MASKED_MEAN),
}
