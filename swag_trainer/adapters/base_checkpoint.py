"""Missing weights: modules that are neither in the base model's checkpoint nor in the adapter's file."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn

from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.peft_layers import AuxiliaryTrainingWrapper, adapter_layers, base_name, inserted_modules

_CHECKPOINT_FILES = ("model.safetensors.index.json", "model.safetensors")


def find_unsaved_modules(model: nn.Module, adapter_name: str) -> list[str]:
    """Return the modules whose weights are neither in the base checkpoint nor in the adapter's file: random at every load.

    transformers initialises a pooler or pre-classifier that the checkpoint lacks at random. PEFT saves only the last layer of a head
    unless ``modules_to_save`` names more. Two loads of such an adapter then predict differently. A module counts as missing when a
    part of its name occurs nowhere in the checkpoint, so that weights which transformers renames while loading do not count.

    Returns:
        Names of modules in the base model; empty too where the base checkpoint is not on this machine as safetensors.
    """
    config = model.peft_config[adapter_name]
    checkpoint_keys = _checkpoint_keys(config.base_model_name_or_path, config.revision)
    if checkpoint_keys is None:
        return []
    found = {part for key in checkpoint_keys for part in key.split(".")}
    found |= {getattr(base_model(model), "base_model_prefix", "")}
    missing: list[str] = []
    for name in base_parameters(model):
        parts = base_name(name).split(".")[:-1]
        absent = next((index for index, part in enumerate(parts) if not part.isdigit() and part not in found), None)
        if absent is not None and (module := ".".join(parts[: absent + 1])) not in missing:
            missing.append(module)
    return missing


def base_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that are the base model's own: not those PEFT put beside a layer or in the place of a module."""
    inserted: list[str] = []
    for name, layer in adapter_layers(model):
        if isinstance(layer, AuxiliaryTrainingWrapper):
            inserted.append(f"{name}.")
        else:
            inserted += [f"{name}.{child}." for child in inserted_modules(layer)]
    return [name for name, _ in model.named_parameters() if not name.startswith(tuple(inserted))]


def _checkpoint_keys(base: str | None, revision: str | None) -> set[str] | None:
    if not base:
        return None
    for filename in _CHECKPOINT_FILES:
        if Path(base).is_dir():
            path = Path(base) / filename
        else:
            cached = try_to_load_from_cache(base, filename, revision=revision)
            path = Path(cached) if isinstance(cached, str) else None
        if path is None or not path.is_file():
            continue
        if path.suffix == ".json":
            return set(json.loads(path.read_bytes())["weight_map"])
        with safe_open(path, "pt") as file:
            return set(file.keys())
    return None
