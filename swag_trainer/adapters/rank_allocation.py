"""Ranks that AdaLoRA, and AdaMSS with ASA, take away in the course of a training run.

AdaLoRA's parameters keep their shapes while it trains: it sets the singular values of the ranks that it takes away to zero at every step,
and only leaves them out of the file. A posterior is of all ranks; those that were taken away stay zero in every draw, and a file of all
ranks computes the same function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftType
from torch import nn


def final_budget_step(model: nn.Module, adapter_name: str) -> int | None:
    """Return the optimizer step from which on an adapter takes away no more ranks; None for one that never does."""
    config = model.peft_config[adapter_name]
    if config.peft_type == PeftType.ADALORA:
        return config.total_step - config.tfinal
    if config.peft_type == PeftType.ADAMSS and config.use_asa:
        return config.final_warmup
    return None


def kept_ranks(model: nn.Module, adapter_name: str) -> dict[str, list[bool]] | None:
    """Return which ranks AdaLoRA keeps, for each of its matrices; None while it keeps all, and for other adapters."""
    config = model.peft_config[adapter_name]
    if config.peft_type != PeftType.ADALORA or config.rank_pattern is None:
        return None
    # PEFT takes the adapter's name out of the names when it saves.
    return {name.replace(f".{adapter_name}", ""): list(kept) for name, kept in config.rank_pattern.items()}


@contextmanager
def every_rank(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """Let PEFT save all ranks of an AdaLoRA adapter, for the length of a ``with`` block."""
    config = model.peft_config[adapter_name]
    if config.peft_type != PeftType.ADALORA:
        yield
        return
    pattern, config.rank_pattern = config.rank_pattern, None
    try:
        yield
    finally:
        config.rank_pattern = pattern


def keep_every_rank(model: nn.Module, adapter_name: str) -> None:
    """Let PEFT save all ranks of an AdaLoRA adapter from now on, once training is over: as its posterior does."""
    config = model.peft_config[adapter_name]
    if config.peft_type == PeftType.ADALORA:
        config.rank_pattern = None
