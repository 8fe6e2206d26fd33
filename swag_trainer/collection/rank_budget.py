"""Collections of a run whose adapter takes away ranks: from the first step on at which the ranks are final."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from swag_trainer.adapters.rank_allocation import final_budget_step
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.distributed import is_first
from swag_trainer.errors import TooFewCollectionsError

logger = logging.getLogger(__name__)


def steps_with_final_ranks(steps: Sequence[int], weights: AdapterWeights, *, max_steps: int) -> list[int]:
    """Return the steps to collect at once an adapter's ranks are final (AdaLoRA, AdaMSS with ASA), and log how many were left out.

    Args:
        steps: Those of the schedule, at least two.
        weights: Of the adapter.
        max_steps: Of the run.

    Raises:
        TooFewCollectionsError: Fewer than two of them are left.
    """
    final = final_budget_step(weights.model, weights.adapter_name)
    left = [step for step in steps if final is None or step >= final]
    if len(left) == len(steps):
        return left
    kind = weights.model.peft_config[weights.adapter_name].peft_type.value
    if len(left) < 2:
        raise TooFewCollectionsError(
            f"{kind} takes away ranks until step {final}, and only later snapshots are of the same ranks: of the {len(steps)} steps to "
            f"collect at, {len(left)} come then, in a run of {max_steps} steps. A posterior needs at least 2. Let the ranks be final earlier "
            "(AdaLoraConfig(total_step=..., tfinal=...): at total_step - tfinal), or train longer."
        )
    if is_first():
        logger.warning(
            "%s takes away ranks until step %d: the %d collections before are left out, %d remain. To have more of them then, begin there: "
            "SwagCallback(Evenly(start=%.2f)).",
            kind,
            final,
            len(steps) - len(left),
            len(left),
            final / max_steps,
        )
    return left
