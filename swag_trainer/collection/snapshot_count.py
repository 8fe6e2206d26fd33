"""Whether a run takes enough snapshots for a posterior, and what to change where it does not."""

from __future__ import annotations

from swag_trainer.collection.schedule import Schedule

# The variance of N independent snapshots is known up to a relative error of sqrt(2 / (N - 1)): 47 % for ten, 100 % for three.
FEW = 10
_ADVICE = (
    "SwagCallback(Evenly(snapshots=30, start=0.3)) takes 30 from the last 70 % of the steps of a run; Every(steps=...) with a smaller number, "
    "an earlier start or more training steps give more of them as well."
)


def planned_too_few(planned: int, schedule: Schedule) -> str | None:
    """Return a warning for a schedule of fewer than ten snapshots; None for more."""
    if planned >= FEW:
        return None
    return (
        f"This run will take {planned} snapshots ({schedule}). {_narrow(planned)} At least 10 are needed for uncertainty worth "
        f"trusting. {_ADVICE}"
    )


def collected_too_few(collected: int, *, planned: int | None, first_step: int, last_step: int, max_steps: int) -> str | None:
    """Return a warning for a run that ended with fewer than ten snapshots, and fewer than planned; None for any other.

    Args:
        collected: Snapshots in the posterior.
        planned: Snapshots of a whole run; None where evaluations decide (`Adaptive`).
        first_step: The step at which the first snapshot was due.
        last_step: The step at which training ended.
        max_steps: The step at which it would have ended.
    """
    if collected >= (FEW if planned is None else min(FEW, planned)):
        return None
    early = last_step < max_steps
    stopped = f"Training stopped at step {last_step} of {max_steps}" if early else f"Training ended at step {last_step}"
    found = f"{stopped} with {collected} snapshots" if planned is None else f"{stopped} with {collected} of {planned} snapshots"
    if planned is None:
        cure = "Adaptive collects after evaluations: evaluate more often, or leave acceptance=Adaptive(...) out."
    else:
        cure = _cure(early=early)
    if collected < 2:
        due = f"the first was due at step {first_step}, and a posterior needs at least two"
        return f"No SWAG posterior: {found}; {due}. The trained adapter is unchanged. {cure}"
    return f"{found}. {_narrow(collected)} {cure}"


def _cure(*, early: bool) -> str:
    return (
        "If early stopping ended the run, begin to collect earlier, as SwagCallback(Evenly(snapshots=30, start=0.1)) does, raise "
        "early_stopping_patience, or train without early stopping: the mean of the snapshots guards against overfitting too."
        if early
        else _ADVICE
    )


def _narrow(count: int) -> str:
    directions = f"{count - 1} direction{'s' if count != 2 else ''}"
    return (
        f"Their covariance has {directions} at most, and its width is known up to {(2 / (count - 1)) ** 0.5:.0%} only: draws may agree where "
        "the model is unsure."
    )
