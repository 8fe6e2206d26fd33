"""Thresholds that the page of `swag-trainer serve` offers: the one that was asked for, and those that `swag_trainer.tune` calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import Decision, PredictionOptions, decide

OWN = "a score of your own"
_DEFAULT_GOALS = (("risk", 0.05), ("coverage", 0.9))  # the slider starts at the offered level nearest to the first of these
_ROUNDED = 5e-4  # of the slider, in whole thousandths


@dataclass(frozen=True)
class Offered:
    """A threshold with its name on the page.

    Attributes:
        name: What it is for.
        decision: What it decides; its reason says where it comes from. A threshold of 0 defers nothing, and is a threshold.
    """

    name: str
    decision: Decision


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a page.

    Attributes:
        offered: By their names; the first one where the slider starts.
        reason: Why nothing that was calibrated is among them; empty where something is.
    """

    offered: Sequence[Offered]
    reason: str

    @property
    def first(self) -> Decision:
        """What is decided at first: by the first threshold; where there is none, nothing is deferred."""
        return self.offered[0].decision if self.offered else Decision()

    def decision(self, score: float, name: str | None = None) -> Decision:
        """Return the decision at a score of the slider, which rounds.

        Args:
            score: Where the slider stands.
            name: Which threshold was chosen; None for the first one offered near that score.
        """
        for each in self.offered:
            if name in (None, each.name) and math.isclose(score, each.decision.threshold, abs_tol=_ROUNDED):
                return each.decision
        return Decision(score, "the threshold set on this page") if score > 0 else Decision()


def offered_thresholds(options: PredictionOptions, posterior: WeightPosterior) -> Thresholds:
    """Find the thresholds for the predictions that a pipeline was asked for.

    The one it was given comes first. Of the calibrated ones the first is that for a risk near 5 %, where one could be guaranteed, else
    that for a coverage near 90 %. Those of other draws, or of another scale or temperature, are not offered.
    """
    given = decide(options, posterior)
    offered = [Offered("as the page was started", Decision(given.threshold, given.reason))] if given.reason else []
    tuning = posterior.tuning
    if tuning is None:
        return Thresholds(offered, "")
    records = [each for each in tuning.thresholds if each.threshold is not None]
    if not records:
        return Thresholds(offered, "No threshold was calibrated: none reached its goal, or none was asked for.")
    without = replace(options, prediction_set=None)
    calibrated = {}
    for each in records:
        try:
            found = decide(without.updated({each.goal: each.target}), posterior)
        except SwagError:
            reason = (
                "No calibrated threshold applies: they were calibrated for other draws, another scale or another temperature."
            )
            return Thresholds(offered, reason)
        calibrated[each.goal, each.target] = Offered(
            _name(each.goal, each.target, found), Decision(found.threshold, found.reason)
        )
    for goal, wanted in reversed(_DEFAULT_GOALS):
        targets = [target for name, target in calibrated if name == goal]
        if targets:
            first = (goal, min(targets, key=lambda target: abs(target - wanted)))
            calibrated = {first: calibrated[first], **calibrated}
    return Thresholds([*offered, *calibrated.values()], "")


def _name(goal: str, target: float, decision: Decision) -> str:
    meaning = f"at most {100 * target:g} % wrong" if goal == "risk" else f"at least {100 * target:g} % labelled"
    return f"{meaning} (score {decision.threshold:.3f})"
