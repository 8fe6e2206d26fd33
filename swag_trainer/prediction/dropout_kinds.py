"""Checks that masks can replace all of a model's dropout."""

from __future__ import annotations

from typing import Any

from torch import nn

from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.peft_layers import own_dropouts
from swag_trainer.errors import DropoutError

LEAVE_OUT = 'Leave dropout=True (the method "MC dropout") out.'

# Attention in torch operations; the kernels of all others draw their masks themselves.
_ATTENTION = (None, "eager", "sdpa")


def check_supported(model: nn.Module, adapter_name: str) -> None:
    """Check that no part of a PEFT model drops out in a way that stays off, or random, where masks replace `nn.Dropout`.

    Raises:
        DropoutError: A module of another kind drops out, attention drops out inside of a kernel, or the adapter has a dropout of its own.
    """
    for name, module in model.named_modules():
        kind = type(module)
        if kind is nn.Dropout or not ("Dropout" in kind.__name__ or isinstance(module, (nn.MultiheadAttention, nn.RNNBase))):
            continue
        rate = next((value for field in ("p", "drop_prob", "dropout") if _is_rate(value := getattr(module, field, None))), 0)
        if rate:
            raise DropoutError(
                f"{name!r}, a {kind.__name__}, drops out at a rate of {rate}, and masks replace nn.Dropout only. {LEAVE_OUT}"
            )
    config = base_model(model).config
    attention = getattr(config, "_attn_implementation", None)
    rates = {field: value for field, value in vars(config).items() if "att" in field and "drop" in field and _is_rate(value)}
    if attention not in _ATTENTION and any(rates.values()):
        raise DropoutError(
            f"The attention implementation {attention!r} draws its dropout masks itself ({rates}). Load the base model with "
            'attn_implementation="sdpa".'
        )
    settings = vars(model.peft_config[adapter_name])
    rates = {field: value for field, value in settings.items() if "dropout" in field and _is_rate(value) and value}
    if rates and not any(own_dropouts(module) for module in model.modules()):
        raise DropoutError(
            f"The adapter's dropout ({rates}) is not made of nn.Dropout, which is all that masks replace. {LEAVE_OUT}"
        )


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
