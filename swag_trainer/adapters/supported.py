"""Kinds of adapters that no posterior can be collected over, and why."""

from __future__ import annotations

from peft import PeftConfig

from swag_trainer.errors import SwagError

_ADVICE = "Train one whose weights lie in the model's layers, such as LoRA."
_REASONS = {
    "ADAPTION_PROMPT": "trains tokens that are put before the input of attention layers",
    "POLY": "needs the number of a task beside every input",
    "SHADOW": "trains a second model that runs beside the base",
    "XLORA": "mixes adapters that lie in other folders",
}


def refuse_unsupported(config: PeftConfig) -> None:
    """Do nothing if a posterior can be collected over an adapter of this kind.

    Raises:
        SwagError: It cannot.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    reason = "is prompt learning, which trains tokens before the input" if config.is_prompt_learning else _REASONS.get(kind)
    if reason:
        raise SwagError(f"An adapter of the kind {kind} {reason}: posteriors of this kind are not supported. {_ADVICE}")
