"""Training few coefficients in the place of LoRA matrices (NOLA, LoRA-XS), with the plain Trainer and PEFT's own files.

A `CoefficientLinear` stands where PEFT keeps ``lora_A`` or ``lora_B``. Its only parameter are coefficients, and its weight is computed of them in every
forward. Saved, it writes both: the weight for plain PEFT, which leaves the rest alone, and the coefficients, with which training is resumed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from swag_trainer.adapters.keys import active_adapter, adapted_model, file_entries
from swag_trainer.adapters.peft_layers import LoraLayer, base_weight, is_merged, lora_layers, lora_obstacle
from swag_trainer.adapters.plain_lora import base_changed_by
from swag_trainer.adapters.quantised import shared_tensors
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.posterior.coefficient_map import CoefficientMap, CoefficientMethod, LoraPair

_MATRICES = ("lora_A", "lora_B")


class CoefficientLinear(nn.Module):
    """A linear layer without bias, whose weight is computed of its coefficients.

    Args:
        mapping: From coefficients to weights.
        key: Of the weight, in the adapter's file and in the map.
        coefficients: To begin with; the parameter is on the device of this tensor.
    """

    def __init__(self, mapping: CoefficientMap, key: str, coefficients: Tensor) -> None:
        super().__init__()
        self.map, self.key, self.bias = mapping, key, None
        self.coefficients = nn.Parameter(coefficients)
        self.register_buffer("basis", mapping.basis(key).to(coefficients.device), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The weight, computed each time. Shape (out, in)."""
        return self.map.combine(self.coefficients, self.basis)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the weight transposed."""
        return functional.linear(x, self.weight)

    def plain_weight(self) -> Tensor:
        """Return the weight as it is saved: on the CPU, in float32, the same bits as the posterior computes."""
        return self.map.weight(self.key, self.coefficients)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.plain_weight()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved, coefficients = state_dict.pop(f"{prefix}weight", None), state_dict.get(f"{prefix}coefficients")
        if saved is not None:
            if coefficients is None or coefficients.shape != self.coefficients.shape:
                raise AdapterMismatchError(
                    f"The adapter to load has {self.key!r} without the {tuple(self.coefficients.shape)} coefficients that train here. Load a "
                    "checkpoint of the same method; a plain adapter opens in a model without train_coefficients()."
                )
            if not torch.allclose(self.map.weight(self.key, coefficients), saved.float().cpu(), rtol=1e-2, atol=1e-4):
                raise AdapterMismatchError(
                    f"The coefficients of {self.key!r} in the adapter to load are of other bases than those of this model, where they would be "
                    "another weight. Call train_coefficients() with the settings that the adapter was trained with; LoRA-XS goes on only where its "
                    "decomposition comes out the same, on the same machine."
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


class FixedLinear(nn.Module):
    """A linear layer without bias that never trains, whatever PEFT sets ``requires_grad`` of its adapter to; it is saved as any other.

    Args:
        weight: Shape (out, in).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.bias = None
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the weight transposed."""
        return functional.linear(x, self.weight)


def train_coefficients(model: nn.Module, method: CoefficientMethod, *, adapter_name: str | None = None) -> CoefficientMap:
    """Make a LoRA adapter train few coefficients in the place of its matrices; ``modules_to_save`` train as before.

    Call it between ``get_peft_model`` and the Trainer, also before resuming. The Trainer, its checkpoints and plain PEFT work as with LoRA, and
    `SwagCallback` collects the coefficients.

    Examples:
        >>> from swag_trainer import Nola, train_coefficients
        >>> train_coefficients(model, Nola(num_coefficients=50, seed=0))  # doctest: +SKIP

    Args:
        model: A PEFT model with LoRA over linear layers, changed in place.
        method: `Nola` or `LoraXs`, with their settings.
        adapter_name: Which adapter; default: the active one.

    Returns:
        The map from coefficients to weights.

    Raises:
        SwagError: No plain LoRA over linear layers, or it has coefficients already.
    """
    adapted = adapted_model(model)
    name = adapter_name or active_adapter(adapted)
    key_of = {id(entry): key for key, entry in file_entries(adapted, name).items()}
    layers = dict(lora_layers(adapted, name))
    if not layers or base_changed_by(vars(adapted.peft_config[name])) is not None:
        raise SwagError(
            f"train_coefficients() needs an adapter of plain LoRA, initialised as by default, and {name!r} is not: leave out init_lora_weights, "
            'and use LoraConfig(target_modules=["query", "value"]), for instance.'
        )
    for place, layer in layers.items():
        obstacle = lora_obstacle(layer, name)
        if obstacle or is_merged(layer) or not all(type(getattr(layer, side)[name]) is nn.Linear for side in _MATRICES):
            raise SwagError(
                f"train_coefficients() needs plain LoRA over linear layers, with no coefficients yet; the layer {place!r} "
                f"{obstacle or 'has other matrices, or is merged'}."
            )
    begun = method.begin([_pair(layer, name, key_of) for layer in layers.values()])
    for layer in layers.values():
        for side in _MATRICES:
            old = getattr(layer, side)[name].weight
            key = key_of[id(old)]
            if key in begun.coefficients:
                new: nn.Module = CoefficientLinear(begun.map, key, begun.coefficients[key].to(old.device))
                new.coefficients.requires_grad_(old.requires_grad)
            else:
                new = FixedLinear(begun.fixed[key].to(old))
            getattr(layer, side)[name] = new
    return begun.map


def coefficient_map(model: nn.Module, adapter_name: str) -> CoefficientMap | None:
    """Return the map of an adapter's coefficients; None where it has none."""
    return next((module.map for module in _coefficient_layers(model, adapter_name)), None)


def plain_weights(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """Return the weights that an adapter's coefficients stand for, by their keys in the file of plain LoRA; empty where it has none."""
    return {module.key: module.plain_weight() for module in _coefficient_layers(model, adapter_name)}


def without_coefficients(model: nn.Module, adapter_name: str | None) -> nn.Module:
    """Return a copy of a model with the weights of plain LoRA in the place of an adapter's coefficients; all other tensors are shared.

    A model without coefficients is returned as it is.
    """
    adapted = adapted_model(model)
    name = adapter_name or active_adapter(adapted)
    if coefficient_map(adapted, name) is None:
        return model
    copied = copy.deepcopy(adapted, shared_tensors(adapted, ()))
    for _, layer in lora_layers(copied, name):
        for side in _MATRICES:
            module = getattr(layer, side)[name]
            if not isinstance(module, nn.Linear):
                weight = (
                    module.plain_weight().to(module.basis.device) if isinstance(module, CoefficientLinear) else module.weight
                )
                plain = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
                plain.weight = nn.Parameter(weight)
                getattr(layer, side)[name] = plain
    return copied


def _pair(layer: LoraLayer, name: str, key_of: dict[int, str]) -> LoraPair:
    a, b = (getattr(layer, side)[name].weight for side in _MATRICES)
    return LoraPair(key_of[id(a)], key_of[id(b)], a.detach(), b.detach(), partial(_base_weight, layer))


def _base_weight(layer: LoraLayer) -> Tensor:
    """Return the base weight of a layer. Shape (out, in)."""
    weight = base_weight(layer).detach()
    return weight.T if layer.fan_in_fan_out else weight


def _coefficient_layers(model: nn.Module, adapter_name: str) -> Iterator[CoefficientLinear]:
    for _, layer in lora_layers(model, adapter_name):
        for side in _MATRICES:
            module = dict(getattr(layer, side).items()).get(adapter_name)  # embeddings have none
            if isinstance(module, CoefficientLinear):
                yield module
