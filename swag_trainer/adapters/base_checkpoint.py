"""Weights of a model in memory that the base model's checkpoint does not have, or has in another shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftConfig
from safetensors import safe_open
from torch import nn

from swag_trainer.adapters.embeddings import token_embeddings
from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.peft_layers import AuxiliaryTrainingWrapper, adapter_layers, base_name, inserted_modules

_CHECKPOINT_FILES = ("model.safetensors.index.json", "model.safetensors")
_FLOATING = (torch.float32, torch.float16, torch.bfloat16)  # the others are packed, in shapes of their own


class OtherShape(NamedTuple):
    """A weight of the base model that its checkpoint has in another shape.

    Attributes:
        name: In the base model.
        stored: Shape in the checkpoint.
        here: Shape in memory.
        is_embedding: Whether it belongs to the embeddings of tokens, which PEFT saves with the adapter when they were resized.
    """

    name: str
    stored: tuple[int, ...]
    here: tuple[int, ...]
    is_embedding: bool


def save_embedding_layers(model: nn.Module, adapter_name: str) -> bool | Literal["auto"]:
    """Return whether the embeddings of tokens belong into an adapter's file; "auto" where PEFT has to find out.

    PEFT asks the Hub for the base model's vocabulary, and takes silence for one that was not resized.
    """
    others = find_other_shapes(model, adapter_name)
    if any(weight.is_embedding for weight in others or []):
        return True
    plain = all(isinstance(module, nn.Embedding) for module in token_embeddings(base_model(model)).values())
    return False if plain and others is not None else "auto"


def find_other_shapes(model: nn.Module, adapter_name: str) -> list[OtherShape] | None:
    """Return the base model's own weights whose shapes are not those of its checkpoint: a head of another task, added tokens.

    Loaded again, such a weight is random, unless the adapter's file has it. Weights that have another number of values count; the same
    ones in another order may be what transformers makes of them while loading.

    Returns:
        None where the base checkpoint is not on this machine as safetensors.
    """
    shapes = checkpoint_shapes(model, adapter_name)
    if shapes is None:
        return None
    parameters = dict(model.named_parameters())
    modules, found = token_embeddings(base_model(model)).values(), []
    embeddings = {id(parameter) for module in modules for parameter in module.parameters()}
    for name in base_parameters(model):
        parameter = parameters[name]
        here = tuple(getattr(parameter, "ds_shape", parameter.shape))
        stored = next((shapes[spelling] for spelling in _spellings(model, name) if spelling in shapes), None)
        if stored is not None and parameter.dtype in _FLOATING and prod(stored) != prod(here):
            found.append(OtherShape(base_name(name), stored, here, id(parameter) in embeddings))
    return found


def base_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that are the base model's own: not those PEFT put beside a layer or in the place of a module."""
    inserted: list[str] = []
    for name, layer in adapter_layers(model):
        if isinstance(layer, AuxiliaryTrainingWrapper):
            inserted.append(f"{name}.")
        else:
            inserted += [f"{name}.{child}." for child in inserted_modules(layer)]
    return [name for name, _ in model.named_parameters() if not name.startswith(tuple(inserted))]


def _prefix(model: nn.Module) -> str:
    return getattr(base_model(model), "base_model_prefix", "")


def _spellings(model: nn.Module, name: str) -> Iterator[str]:
    """Names that a checkpoint may have for a parameter: a headless model saves its weights without the prefix."""
    name, prefix = base_name(name), f"{_prefix(model)}."
    yield from (name, name.removeprefix(prefix), prefix + name)


def checkpoint_shapes(model: nn.Module, adapter_name: str) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of the weights in the base model's checkpoint, by their names there.

    Returns:
        None where a part of the checkpoint is not on this machine as safetensors.
    """
    config = model.peft_config[adapter_name]
    index, whole = (checkpoint_file(config, filename) for filename in _CHECKPOINT_FILES)
    if index is None:
        return None if whole is None else _shapes_in(whole)
    shapes: dict[str, tuple[int, ...]] = {}
    for filename in sorted(set(json.loads(index.read_bytes())["weight_map"].values())):
        shard = checkpoint_file(config, filename)
        if shard is None:
            return None
        shapes |= _shapes_in(shard)
    return shapes


def checkpoint_file(config: PeftConfig, filename: str) -> Path | None:
    """Return a file of the checkpoint of an adapter's base model; None where it is not on this machine."""
    base = config.base_model_name_or_path
    if not base:
        return None
    if Path(base).is_dir():
        path = Path(base) / filename
    else:
        cached = try_to_load_from_cache(base, filename, revision=config.revision)
        path = Path(cached) if isinstance(cached, str) else None
    return path if path is not None and path.is_file() else None


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no dictionary
