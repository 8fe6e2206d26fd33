"""Every spelling of a weight -> the one in the adapter's own file.

PEFT spells one weight three ways: ``base_model.model.head.modules_to_save.default.weight`` in the model,
``base_model.model.head.weight`` in adapter_model.safetensors, and with wrappers of FSDP or torch.compile in between. Above this
room everybody says *key* and means the spelling in the file.
"""

from __future__ import annotations

from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from swag_trainer.errors import SwagError


def unwrap(model: nn.Module) -> PeftModel:
    """Return the PEFT model inside ``torch.compile``, DistributedDataParallel and their like.

    Raises:
        SwagError: There is none.
    """
    inner: object = model
    while isinstance(inner, nn.Module):
        if isinstance(inner, PeftModel):
            return inner
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    raise SwagError(
        f"A PEFT model is needed, got {type(model).__name__}. Wrap it first: "
        'model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", ...)).'
    )


def active_adapter(model: PeftModel) -> str:
    """Return the name of the one active adapter.

    Raises:
        SwagError: Several are active at once.
    """
    names = model.active_adapters
    if len(names) != 1:
        raise SwagError(f"One active adapter is needed, the model has {names}. Name one with adapter_name=...")
    return names[0]


def parameter_names(model: PeftModel, adapter_name: str) -> dict[str, str]:
    """Map each key of the adapter's file to the name of the parameter behind it.

    PEFT itself says what goes into the file; which parameter each entry is, is told by where it lies in memory, so no rule about
    LoRA, DoRA, IA3 or ``modules_to_save`` is repeated here. Entries that are no parameter (the frozen projections of VeRA, say)
    are left out, and of two keys for one tied parameter the first in the alphabet stays.

    Args:
        model: The model, on real devices.
        adapter_name: Which adapter.

    Raises:
        SwagError: The model has no such adapter.
    """
    if adapter_name not in model.peft_config:
        raise SwagError(f"The model has no adapter {adapter_name!r}; it has {sorted(model.peft_config)}.")
    # Not "auto", which asks the Hub for the base model's config.json on every call.
    file_weights = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    place_of = {_place(parameter): name for name, parameter in model.named_parameters()}
    names: dict[str, str] = {}
    for key in sorted(file_weights):
        name = place_of.pop(_place(file_weights[key]), None)
        if name is not None:
            names[key] = name
    return names


def _place(tensor: object) -> tuple[object, ...]:
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
