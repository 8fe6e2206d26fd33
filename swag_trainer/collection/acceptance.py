"""Adaptive SWA: let an evaluation decide which weights are averaged (ASWA, Demir et al. 2024, arXiv:2406.19092)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from swag_trainer.collection.collector import SwagCollector
from swag_trainer.errors import SwagError


class Decision(Enum):
    """Decision about a candidate."""

    SOFT = "soft"  # it joins the average
    HARD = "hard"  # the average begins anew with it
    REJECT = "reject"  # nothing changes


@dataclass(frozen=True)
class Adaptive:
    """Average only weights that keep the average good on the evaluation set.

    At each evaluation since the schedule's first step the running weights are the candidate. The average with them is evaluated
    too: they join if it is not worse than before; the average begins anew with them if they alone beat both; else they are left out.

    Examples:
        >>> Adaptive().decide(running=0.5, averaged=0.3, accepted=0.4)
        <Decision.SOFT: 'soft'>
        >>> Adaptive().decide(running=0.2, averaged=0.3, accepted=0.4)
        <Decision.HARD: 'hard'>
        >>> Adaptive().decide(running=0.5, averaged=0.45, accepted=0.4)
        <Decision.REJECT: 'reject'>

    Attributes:
        metric: A metric of the Trainer's evaluation, "eval_loss" or one that ``compute_metrics`` returns. Where ``eval_dataset`` is a
            dictionary its name begins with that of a data set: "eval_dev_loss".
        greater_is_better: As in `TrainingArguments`: by default False if the metric's name ends in "loss", else True.
    """

    metric: str = "eval_loss"
    greater_is_better: bool | None = None

    def decide(self, *, running: float, averaged: float, accepted: float | None) -> Decision:
        """Decide about a candidate. A score that is not a number never wins.

        Args:
            running: Score of the candidate itself.
            averaged: Score of the average with the candidate in it.
            accepted: Score of the average as it stands; None if there is none yet.
        """
        if accepted is None:
            return Decision.SOFT if averaged == averaged else Decision.REJECT
        if self._better(running, averaged) and self._better(running, accepted):
            return Decision.HARD
        if averaged == accepted or self._better(averaged, accepted):
            return Decision.SOFT
        return Decision.REJECT

    def score(self, metrics: Mapping[str, float]) -> float:
        """Return the metric out of those of an evaluation.

        Raises:
            SwagError: It is not among them.
        """
        if self.metric not in metrics:
            raise SwagError(f"Adaptive(metric={self.metric!r}) is not among the metrics of the evaluation: {sorted(metrics)}.")
        return float(metrics[self.metric])

    def data_set_of(self, eval_dataset: Any) -> str | None:
        """Return the name of the evaluation set that the metric is measured on; None where there is one set only, or none of this name.

        Args:
            eval_dataset: The Trainer's; a dictionary if it has several.
        """
        if not isinstance(eval_dataset, dict):
            return None
        return max((name for name in eval_dataset if self.metric.startswith(f"eval_{name}_")), key=len, default=None)

    def is_measured_in(self, metrics: Mapping[str, float], eval_dataset: Any) -> bool:
        """Are these the metrics of the evaluation set that decides, and not of another one?"""
        name = self.data_set_of(eval_dataset)
        prefix = "eval" if name is None else f"eval_{name}"
        return self.metric in metrics or f"{prefix}_runtime" in metrics  # the Trainer adds its runtime to every evaluation

    def check(self, args: Any, trainer: Any) -> None:
        """Refuse a run in which no weights would ever be proposed.

        Raises:
            SwagError: The run has no evaluations, the Trainer cannot be found to make them, or the metric names none of several
                evaluation sets.
        """
        if trainer is None:
            raise SwagError(
                f"{self} evaluates the average through the Trainer, and no Trainer was found that called this callback. Let your Trainer "
                "inherit from swag_trainer.SwagTrainerMixin, or call swag.attach(trainer) before trainer.train()."
            )
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no" or trainer.eval_dataset in (None, {}):
            raise SwagError(
                f"{self} decides at evaluations, and this run has none: pass eval_dataset=... to the Trainer and "
                'eval_strategy="steps" or "epoch" to TrainingArguments.'
            )
        if isinstance(trainer.eval_dataset, dict) and self.data_set_of(trainer.eval_dataset) is None:
            losses = [f"eval_{name}_loss" for name in trainer.eval_dataset]
            raise SwagError(
                f"Adaptive(metric={self.metric!r}) belongs to none of the evaluation sets {sorted(trainer.eval_dataset)}, whose metrics "
                f"have their names in them. Choose the one that decides: Adaptive(metric={losses[0]!r})"
                + "".join(f" or {loss!r}" for loss in losses[1:])
                + ", or another metric of theirs in place of the loss."
            )

    def _better(self, one: float, other: float) -> bool:
        greater = not self.metric.endswith("loss") if self.greater_is_better is None else self.greater_is_better
        return one > other if greater else one < other


def propose(
    collector: SwagCollector,
    acceptance: Adaptive,
    *,
    running: float,
    evaluate: Callable[[], float],
    step: int,
    learning_rate: float | None,
) -> Decision:
    """Propose the weights as they are now to the average; in a distributed run every process has to call this.

    Args:
        collector: What holds the average; changed unless the decision is to reject.
        acceptance: The rule that decides.
        running: Score of the weights as they are.
        evaluate: Gives the score of what the model holds when it is called.
        step: Number of the optimizer step, for the record.
        learning_rate: The rate at this step, for the record.
    """
    averaged = running
    if collector.score is not None:
        provisional = collector.mean_with(collector.read(step=step))
        with collector.weights.replaced_by(provisional):
            averaged = evaluate()
    decision = acceptance.decide(running=running, averaged=averaged, accepted=collector.score)
    if decision is Decision.REJECT:
        return decision
    if decision is Decision.HARD:
        collector.restart()
    collector.collect(step=step, learning_rate=learning_rate)
    collector.score = running if decision is Decision.HARD else averaged
    return decision
