"""Modules of a model in memory that no later load would find: what transformers' own loading of the base checkpoint leaves at random."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from swag_trainer.adapters.base_checkpoint import base_parameters, checkpoint_shapes
from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.peft_layers import base_name
from swag_trainer.load_reports import load_reports_held_back

# Of a model's class, where it cannot be made without memory for its weights.
_NOT_ON_META = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def find_unsaved_modules(model: nn.Module, adapter_name: str) -> list[str]:
    """Return the modules whose weights are neither in the base checkpoint nor in the adapter's file: random at every load.

    transformers initialises a pooler or pre-classifier that the checkpoint lacks at random. PEFT saves only the last layer of a head
    unless ``modules_to_save`` names more. Two loads of such an adapter then predict differently.

    transformers renames, splits and fuses weights while it loads them, so no names are compared here: the model's class loads the shapes
    in the checkpoint once more, without memory for weights, and reports what it did not find.

    Args:
        model: The PEFT model.
        adapter_name: Its adapter.

    Returns:
        Names of modules in the base model, each the outermost of which nothing is saved; empty too where it cannot be known: the base
        checkpoint is not on this machine as safetensors, the base is no model of transformers or cannot be made without memory, or
        DeepSpeed ZeRO-3 loads it. Loading the posterior refuses such an adapter in any case.
    """
    base = base_model(model)
    shapes = checkpoint_shapes(model, adapter_name)
    if shapes is None or not isinstance(base, PreTrainedModel) or is_deepspeed_zero3_enabled():
        return []
    own = [base_name(name) for name in base_parameters(model)]
    found = _found_by_loading(base, shapes)
    missing = [] if found is None else [name for name in own if name not in found]
    everything = [name for name, _ in base.named_parameters()] if missing else []
    kept = {base_name(name) for name in everything} - set(missing)
    return list(dict.fromkeys(_outermost_module(name, kept) for name in missing))


def names_for_modules_to_save(model: PeftModel, adapter_name: str, modules: Iterable[str]) -> list[str]:
    """Return names for ``modules_to_save`` that mean these modules and no others, before those that it has already."""
    names = [name for name, _ in base_model(model).named_modules()]
    endings = []
    for module in modules:
        parts = module.split(".")
        candidates = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        endings.append(next((end for end in candidates if sum(name.endswith(end) for name in names) == 1), module))
    heads = getattr(model.peft_config[adapter_name], "modules_to_save", None) or []
    return endings + [head for head in heads if any(name.endswith(head) for name in names)]


def _found_by_loading(base: PreTrainedModel, shapes: dict[str, tuple[int, ...]]) -> set[str] | None:
    """Return the weights of the base model's class that loading finds in a checkpoint; None where it cannot be made without memory."""
    config = copy.deepcopy(base.config)
    is_quantised = hasattr(config, "quantization_config")
    if is_quantised:
        del config.quantization_config
    state_dict = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        with load_reports_held_back(), _without_bar():
            model, report = type(base).from_pretrained(
                None,
                config=config,
                state_dict=state_dict,
                device_map={"": "meta"},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except _NOT_ON_META:
        return None
    missing: set[str] = set(report["missing_keys"])
    if is_quantised:  # of "layer.weight" the checkpoint may have packed parts only: "layer.weight:qdata", "layer.qweight"
        modules = {key.rpartition(".")[0] for key in report["unexpected_keys"]}
        prefix = f"{base.base_model_prefix}."
        modules |= {prefix + module for module in modules}
        missing = {name for name in missing if name.rpartition(".")[0] not in modules}
    return set(model.state_dict()) - missing


@contextmanager
def _without_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _outermost_module(name: str, kept: set[str]) -> str:
    """Return the outermost module around a parameter under which nothing is kept."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        module = ".".join(parts[:length])
        if not any(other.startswith(f"{module}.") for other in kept):
            return module
    return name
