"""Names of accelerate that are not public: all that the packed forward uses of them."""

from __future__ import annotations

from torch import nn


def is_offloaded(module: nn.Module) -> bool:
    """Do the weights of a module lie elsewhere between its forwards?"""
    return bool(getattr(getattr(module, "_hf_hook", None), "offload", False))
