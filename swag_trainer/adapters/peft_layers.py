"""Layers that PEFT puts into a model: every name of PEFT and transformers that their documentation does not promise, in one place.

Written for PEFT 0.21; `tests/adapters/test_peft_layers.py` fails where a newer version moves one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft import PeftConfig, PeftModel, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

# Layers of PEFT that are base(x) + scaling * B A x: by name, since some of them exist only where their library is installed.
_PLAIN_LORA = ("layer.Linear", "bnb.Linear8bitLt", "bnb.Linear4bit", "torchao.TorchaoLoraLinear")


def config_class(peft_type: str) -> type[PeftConfig] | None:
    """Return the class of the settings of a kind of adapter; None for a kind that this version of PEFT does not have."""
    return PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)


def is_prompt_learning(kind: type[PeftConfig]) -> bool:
    """Does a kind of adapter put trained tokens before the input, and has no weights in the model's layers?"""
    return issubclass(kind, PromptLearningConfig)


def weight_prefix(peft_type: str) -> str | None:
    """Return how the names of a kind's weights begin, behind the name of their module: "lora_" for LoRA."""
    return PEFT_TYPE_TO_PREFIX_MAPPING.get(peft_type)


def is_adapted(module: nn.Module) -> bool:
    """Does the module hold an adapter: a `peft.PeftModel`, or a transformers model after ``add_adapter``?"""
    return isinstance(module, PeftModel) or getattr(module, "_hf_peft_config_loaded", False)


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer | AuxiliaryTrainingWrapper]]:
    """Yield the layers with adapter weights (LoRA, IA3 ...) and the wrappers of modules that train as a whole, by name."""
    for name, module in model.named_modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            yield name, module


def lora_layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the LoRA layers of one adapter by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in module.r:
            yield name, module


def default_targets(model_type: str) -> list[str] | None:
    """Return which layers PEFT gives LoRA in an architecture where the user names none; None where the user has to."""
    targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    return list(targets) if isinstance(targets, list) else None


def inserted_modules(layer: BaseTunerLayer) -> dict[str, nn.Module]:
    """Return what PEFT put into a layer beside the base model's own module, by its name in the layer."""
    return {name: child for name, child in layer.named_children() if name != "base_layer"}


def base_name(name: str) -> str:
    """Return the name that a module or parameter of a PEFT model has in the base model.

    >>> base_name("base_model.model.bert.pooler.dense.base_layer.weight")
    'bert.pooler.dense.weight'
    """
    return ".".join(part for part in name.removeprefix("base_model.model.").split(".") if part != "base_layer")


def base_layer(layer: Any) -> nn.Module:
    """Return the base model's own module inside a layer."""
    return layer.get_base_layer()


def base_weight(layer: Any) -> Tensor:
    """Return the base weight that a layer wraps; of a quantised one, the numbers that it stands for."""
    return dequantize_module_weight(layer.get_base_layer())


def original_module(wrapper: ModulesToSaveWrapper) -> nn.Module:
    """Return the base model's own module, in whose place a trained copy works."""
    return wrapper.original_module


def copies(wrapper: ModulesToSaveWrapper) -> dict[str, nn.Module]:
    """Return the trained copies of a module in ``modules_to_save``, by the adapter's name."""
    return dict(wrapper.modules_to_save.items())


def is_merged(layer: BaseTunerLayer | AuxiliaryTrainingWrapper) -> bool:
    """Are adapter weights added into the base weight of this layer?"""
    return bool(getattr(layer, "merged", False))  # the wrappers, which cannot be merged, have no such attribute


def is_disabled(layer: BaseTunerLayer | AuxiliaryTrainingWrapper) -> bool:
    """Is the layer switched to compute what the base model does?"""
    return bool(layer.disable_adapters)


def own_dropouts(module: nn.Module) -> list[nn.Dropout]:
    """Return the dropouts that PEFT put into a module, which are before its adapter weights; none where it is no adapted layer."""
    inserted = inserted_modules(module).values() if isinstance(module, BaseTunerLayer) else ()
    return [part for child in inserted for part in child.modules() if isinstance(part, nn.Dropout)]


def lora_obstacle(layer: LoraLayer, adapter_name: str) -> str | None:
    """Return why a LoRA layer computes something else than base(x) + scaling * B A x in evaluation mode, else None."""
    kind = type(layer)
    if f"{kind.__module__.removeprefix('peft.tuners.lora.')}.{kind.__name__}" not in _PLAIN_LORA:
        return f"is a {kind.__module__}.{kind.__name__}"
    if adapter_name in layer.lora_variant or layer.use_dora.get(adapter_name) or layer.lora_bias.get(adapter_name):
        return "is more than B A x (DoRA, a bias or another variant)"
    dropout = type(layer.lora_dropout[adapter_name])
    return None if dropout in (nn.Identity, nn.Dropout) else f"has a dropout of type {dropout.__name__}"
