"""Learning rate of the collection phase: held constant, or given.

SWAG wants snapshots of a trajectory at a roughly constant rate. Snapshots of a rate that falls to zero measure the schedule.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from swag_trainer.collection.diagnostics import FALLING_RATE
from swag_trainer.errors import SwagError

logger = logging.getLogger(__name__)

CollectionRate = float | Literal["hold"] | None
_APPROACH = 0.05  # of the steps before collection


def apply_collection_rate(scheduler: LRScheduler, rate: CollectionRate, *, first: int, last: int) -> bool:
    """Make the Trainer's scheduler follow the collection phase's learning rate, so that the logged rate is the true one.

    Args:
        scheduler: The Trainer's scheduler, any state.
        rate: "hold" keeps the rate that the schedule has reached at the first collection until the end; a number is held from
            the first collection on, after a linear approach over the 5 % of steps before it; None leaves the schedule alone and
            warns if it falls by more than half while collecting. A number is the rate of the first group of parameters that has one, as
            the Trainer logs it; other groups keep their ratio to it (LoRA+, arXiv:2402.12354).
        first: Step of the first collection.
        last: Step of the last one.

    Returns:
        Whether the schedule was left alone and falls, about which a warning was logged.

    Raises:
        SwagError: The rate cannot be held: it would be zero, or the scheduler is of a kind whose rates cannot be computed ahead.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it for DeepSpeed
    if not isinstance(scheduler, LambdaLR):
        if rate is None:
            return False
        raise SwagError(
            f"SwagCallback(learning_rate={rate!r}) holds the learning rate by changing the Trainer's LambdaLR, this run uses "
            f"{type(scheduler).__name__}. Pass learning_rate=None to collect at its own rate, or choose another lr_scheduler_type."
        )
    if rate is None:
        return _warn_if_falling(scheduler, first, last)
    reference = next((base for base in scheduler.base_lrs if base > 0), 0.0)
    targets = [
        original(first) if rate == "hold" else rate / reference if reference else 0.0 for original in scheduler.lr_lambdas
    ]
    if not any(target * base > 0 for target, base in zip(targets, scheduler.base_lrs, strict=True)):
        raise SwagError(
            f"The learning rate to hold while collecting is 0: the schedule has no rate left at step {first}. Start the collection earlier, "
            "or name a rate: SwagCallback(learning_rate=2e-4)."
        )
    begin = first if rate == "hold" else first - max(1, round(_APPROACH * first))
    scheduler.lr_lambdas = [
        _held(original, target, begin, first) for original, target in zip(scheduler.lr_lambdas, targets, strict=True)
    ]
    # What LambdaLR.get_lr would return now: matters if collection has begun already (a resume, or a start at step 0).
    for group, factor, base in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, scheduler.base_lrs, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
    return False


def _held(original: Callable[[int], float], target: float, begin: int, first: int) -> Callable[[int], float]:
    # A closure, not a callable object: LambdaLR would put an object's attributes into scheduler.pt, which then fails to load.
    def factor(step: int) -> float:
        if step >= first:
            return target
        if step <= begin:
            return original(step)
        fraction = (step - begin) / (first - begin)
        return (1 - fraction) * original(begin) + fraction * target

    return factor


def _warn_if_falling(scheduler: LambdaLR, first: int, last: int) -> bool:
    # Update n uses the rate after n - 1 steps of the scheduler.
    rates = [
        base * factor(step)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for step in (first, last - 1)
    ]
    falls = rates[1] < FALLING_RATE * rates[0]
    if falls:
        logger.warning(
            "The learning rate falls from %.3g at the first collection (step %d) to %.3g at the last (step %d): the posterior will "
            'mostly measure that descent. SwagCallback(learning_rate="hold"), the default, keeps the rate constant.',
            rates[0],
            first,
            rates[1],
            last,
        )
    return falls
