"""Embeddings of tokens that were added to a base model: how many an adapter's file asks for, and those that it holds.

PEFT saves the embeddings of all tokens with an adapter where they were resized. They are the base model's own, and no weights of the
adapter.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from swag_trainer.adapters.keys import FILE_PREFIX
from swag_trainer.errors import SwagError
from swag_trainer.posterior.saved_adapter import SavedAdapter

_MOST_NEW_TOKENS = 4096  # where the file has no embeddings, which would tell how many there are
# What PEFT calls the embeddings inside of the layers that it puts in their place.
_WHOLE = ("weight", "base_layer.weight", "original_module.weight", "token_adapter.base_layer.weight")
_COPY = "modules_to_save."  # a second copy, which PEFT writes and never reads


def token_embeddings(model: nn.Module) -> dict[str, nn.Module]:
    """Return the embeddings of tokens at the input and, where there are some, at the output, by name; none in a model of images, say."""
    found: list[nn.Module | None] = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        try:
            found.append(getattr(model, name)())
        except (AttributeError, NotImplementedError):  # how models say that they have none
            continue
    ids = {id(module) for module in found if module is not None}
    return {name: module for name, module in model.named_modules() if id(module) in ids}


def resize_embeddings(base: nn.Module, adapter: SavedAdapter, *, pad_token_id: int | None) -> None:
    """Give a base model as many embeddings as the adapter was trained with, and its padding token.

    The new ones are random until the adapter is loaded. Only the padding's stays so where the file has none: its position is masked.

    Args:
        base: The base model, as its checkpoint has it.
        adapter: What will be loaded.
        pad_token_id: Number of the padding token; None for the base model's own.

    Raises:
        SwagError: There is no token of that number, or one that trains lies far behind the last one.
    """
    name, module = next(iter(token_embeddings(base).items()), (None, None))
    if isinstance(module, nn.Embedding):
        rows = _rows_in(adapter.tensors, f"{FILE_PREFIX}{name}.")
        if rows is None:
            trained = adapter.config.get("trainable_token_indices") or {}
            indices = [index for each in (trained.values() if isinstance(trained, dict) else [trained]) for index in each]
            last = max([*indices, *([] if pad_token_id is None else [pad_token_id])], default=0)
            rows = max(module.num_embeddings, last + 1)
            if rows > module.num_embeddings + _MOST_NEW_TOKENS:
                raise SwagError(
                    f"The adapter needs the token {last}, the base model has {module.num_embeddings} embeddings and the adapter's file "
                    "none. Save it with its embeddings: save_pretrained(..., save_embedding_layers=True)."
                )
        if rows != module.num_embeddings:
            base.resize_token_embeddings(rows, mean_resizing=False)
    if pad_token_id is not None:
        base.config.pad_token_id = pad_token_id


def saved_embeddings(model: nn.Module, adapter: SavedAdapter, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the base model's embeddings that an adapter's file holds beside its own weights, as the model has them now.

    Args:
        model: The PEFT model, the adapter loaded.
        adapter: What was loaded.
        tensors: Every parameter of the model by name.

    Returns:
        A tensor for each key of the file that is one of them.
    """
    prefixes = tuple(f"{name}." for name in token_embeddings(model))
    found: dict[str, Tensor] = {}
    for key in adapter.tensors:
        if prefixes and key.startswith(prefixes):
            name = key.replace(_COPY, f"{_COPY}default.")
            if name in tensors:
                found[key] = tensors[name]
    return found


def _rows_in(tensors: Mapping[str, Tensor], prefix: str) -> int | None:
    for suffix in _WHOLE:
        if prefix + suffix in tensors:
            return len(tensors[prefix + suffix])
    factor = tensors.get(f"{prefix}lora_embedding_A")
    return None if factor is None else factor.shape[1]
