"""The posterior mean against the weights that training left, on the Trainer's own evaluation: which of them the adapter should hold."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.trainer_access import evaluate_without_logging
from swag_trainer.distributed import is_first
from swag_trainer.errors import SwagError

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Two sets of weights, measured alike.

    Attributes:
        metric: Name in the Trainer's metrics, such as "eval_loss".
        trained: Of the weights that training left: the last, or the best under ``load_best_model_at_end``.
        mean: Of the posterior mean.
        step: The step that the trained weights are of.
        greater_is_better: Whether more of the metric is better.
    """

    metric: str
    trained: float
    mean: float
    step: int
    greater_is_better: bool

    @property
    def mean_is_worse(self) -> bool:
        """Whether the trained weights are better."""
        return self.mean < self.trained if self.greater_is_better else self.mean > self.trained

    def log(self, *, mean_is_used: bool) -> None:
        """Log both numbers: as a warning where the mean is worse and replaced the better weights."""
        if not is_first():
            return
        numbers = (
            f"{self.metric} is {self.mean:.4g} at the posterior mean and {self.trained:.4g} at the weights of step {self.step}"
        )
        if not self.mean_is_worse:
            logger.info("%s.", numbers)
        elif mean_is_used:
            logger.warning(
                "%s, which the mean replaced in the adapter although they are better on the Trainer's own evaluation. Averaged draws may "
                'still be better than both: measure them. SwagCallback(final_weights="better") keeps the better of the two in the adapter, '
                'final_weights="trained" always the trained weights; the posterior is the same.',
                numbers,
            )
        else:
            logger.warning("%s: the adapter keeps the trained weights, the posterior has its mean.", numbers)


def evaluates(args: TrainingArguments, trainer: Trainer | None) -> bool:
    """Return whether a Trainer evaluates on a data set of its own while it trains."""
    return trainer is not None and trainer.eval_dataset is not None and args.eval_strategy != "no"


def check_evaluates(args: TrainingArguments, trainer: Trainer | None, *, is_sharded: bool) -> None:
    """Check that the Trainer evaluates weights that every process has whole, as ``final_weights="better"`` needs.

    Raises:
        SwagError: It does not.
    """
    if is_sharded:
        raise SwagError(
            'SwagCallback(final_weights="better") evaluates the mean in the place of the trained weights, which are cut up over processes '
            'here. Use "mean" or "trained".'
        )
    if not evaluates(args, trainer):
        raise SwagError(
            'SwagCallback(final_weights="better") compares the posterior mean with the trained weights on the Trainer\'s own evaluation: it '
            'needs an eval_dataset and TrainingArguments(eval_strategy="steps") or "epoch".'
        )


def compare_with_mean(
    trainer: Trainer, args: TrainingArguments, state: TrainerState, weights: AdapterWeights, mean: Mapping[str, Tensor]
) -> Comparison | None:
    """Evaluate the posterior mean, and the weights in the model where the Trainer has not evaluated these already.

    Every process has to call this. It takes one pass over the evaluation set, or two; no random number is used up.

    Args:
        trainer, args, state: As a callback has them.
        weights: The trained weights in the model, which are left as they are.
        mean: The posterior mean by key.

    Returns:
        None where the metric by which the best model is chosen (else the loss) is not in what an evaluation returns.
    """
    named = (args.metric_for_best_model or "loss").removeprefix("eval_")
    sets = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else []
    data_set = next((name for name in sets if named.startswith(f"{name}_")), sets[0] if sets else None)
    inner = named if data_set is None else named.removeprefix(f"{data_set}_")
    metric = f"eval_{inner}" if data_set is None else f"eval_{data_set}_{inner}"
    step = state.best_global_step if args.load_best_model_at_end and state.best_global_step else state.global_step
    logged = (entry[metric] for entry in reversed(state.log_history) if entry.get("step") == step and metric in entry)
    trained = next(logged, None)
    if trained is None:
        trained = evaluate_without_logging(trainer, data_set).get(metric)
    with weights.replaced_by(mean):
        averaged = evaluate_without_logging(trainer, data_set).get(metric)
    if trained is None or averaged is None:
        return None
    greater = (
        args.greater_is_better
        if args.metric_for_best_model and args.greater_is_better is not None
        else not named.endswith("loss")
    )
    return Comparison(metric, float(trained), float(averaged), step, greater)
