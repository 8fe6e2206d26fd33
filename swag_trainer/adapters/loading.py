"""Load a saved adapter on a base model, and check that what was loaded is what its file holds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from swag_trainer.adapters.embeddings import saved_embeddings
from swag_trainer.adapters.keys import own_tensors
from swag_trainer.errors import AdapterMismatchError
from swag_trainer.posterior.saved_adapter import SavedAdapter


def load_adapter(base: nn.Module, adapter: SavedAdapter, settings: Mapping[str, Any]) -> PeftModel:
    """Return a base model with an adapter, which is loaded as any other process would.

    Args:
        base: The base model; PEFT puts the adapter's layers into it.
        adapter: What lies in the adapter's two files.
        settings: Its settings as they are safe to load, see `loadable_settings`.

    Raises:
        AdapterMismatchError: PEFT cannot load it on this base, or the file has other weights than the model that it describes.
    """
    # From our checked bytes, not from the folder: what PEFT reads is what was checked, whoever writes there meanwhile.
    with tempfile.TemporaryDirectory(prefix="swag_trainer-") as folder:
        replace(adapter, config=settings).write(Path(folder))
        try:
            model = PeftModel.from_pretrained(base, folder)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:  # of 45 kinds of adapters
            raise AdapterMismatchError(
                f"PEFT cannot load the adapter on {adapter.base_model!r}: {type(error).__name__}: {str(error)[:300]}"
            ) from error
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    loaded = {**saved_embeddings(model, adapter, own_tensors(model)), **own}
    if set(loaded) != set(adapter.tensors):
        differing = sorted(set(loaded) ^ set(adapter.tensors))
        raise AdapterMismatchError(
            f"The adapter's file and the model it describes do not have the same weights; the first is {differing[0]!r}."
        )
    for key, tensor in adapter.tensors.items():
        if loaded[key].shape != tensor.shape or not torch.equal(loaded[key].cpu(), tensor.to(loaded[key].dtype)):
            raise AdapterMismatchError(f"PEFT did not load {key!r} as the adapter's file has it.")
    return model
