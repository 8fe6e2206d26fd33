"""Read an adapter back as another process would, on the base weights in memory, before it counts as saved."""

from __future__ import annotations

import copy

import torch
from torch import nn

from swag_trainer.adapters.embeddings import token_embeddings
from swag_trainer.adapters.initialisation import base_changing_initialisation
from swag_trainer.adapters.keys import base_model, file_entries
from swag_trainer.adapters.loading import load_adapter
from swag_trainer.adapters.peft_layers import AuxiliaryTrainingWrapper, BaseTunerLayer, base_layer, original_module
from swag_trainer.adapters.quantised import shared_tensors
from swag_trainer.adapters.settings import loadable_settings
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.posterior.saved_adapter import SavedAdapter


def check_loadable(weights: AdapterWeights, adapter: SavedAdapter | None = None) -> None:
    """Load an adapter onto a bare copy of its model, which shares the base weights, and compare every tensor.

    The model, its ``requires_grad`` and the random state stay as they are. The adapter is in memory twice meanwhile, the base is not. Nothing
    is done where that would change the base (OLoRA, PiSSA and their like, which have fingerprints) or where no process has all of it.

    Args:
        weights: Of the model that trains.
        adapter: As it will be saved; default: as it stands in the model now.

    Raises:
        AdapterMismatchError: PEFT cannot load it, or loads something else.
    """
    model = weights.model
    config = model.peft_config[weights.adapter_name]
    if weights.is_sharded or base_changing_initialisation(config) is not None:
        return
    adapter = adapter or weights.saved()
    written = {id(entry) for entry in file_entries(model, weights.adapter_name).values()}
    if any(key.startswith(tuple(token_embeddings(model))) for key in adapter.tensors):
        written |= {id(parameter) for module in token_embeddings(model).values() for parameter in module.parameters()}
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        base = _bare(copy.deepcopy(base_model(model), shared_tensors(model, written)))
        with torch.random.fork_rng():
            load_adapter(base, adapter, loadable_settings(adapter, name="memory"))
    except SwagError as error:
        raise AdapterMismatchError(
            f"The adapter {weights.adapter_name!r} would be saved in a form that no other process can load. {error} Train an adapter of "
            "another kind, or with other settings."
        ) from error
    finally:
        for parameter, requires_grad in trains:
            parameter.requires_grad_(requires_grad)


def _bare(module: nn.Module) -> nn.Module:
    """Put the base model's own modules back in the place of PEFT's, in a copy of a model, and return it."""
    while isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        module = base_layer(module) if isinstance(module, BaseTunerLayer) else original_module(module)
    for name, child in module.named_children():
        setattr(module, name, _bare(child))
    for attribute in (
        "peft_config",
        "hf_device_map",
        "_hf_peft_config_loaded",
    ):  # else PEFT warns of a second adapter, or moves the weights
        vars(module).pop(attribute, None)
    return module
