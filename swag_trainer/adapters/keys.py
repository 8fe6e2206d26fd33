"""Names of an adapter's weights: keys of adapter_model.safetensors and the parameters behind them.

PEFT spells one weight three ways: ``base_model.model.head.modules_to_save.default.weight`` in the model,
``base_model.model.head.weight`` in adapter_model.safetensors, and with wrappers of FSDP or torch.compile in between. In this
package *key* always means the spelling in the file.
"""

from __future__ import annotations

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from swag_trainer.adapters.peft_layers import adapter_layers, is_adapted
from swag_trainer.adapters.rank_allocation import every_rank
from swag_trainer.errors import SwagError

FILE_PREFIX = "base_model.model."


def adapted_model(model: nn.Module) -> nn.Module:
    """Return the model that holds the adapter: inside ``torch.compile``, DistributedDataParallel, a SentenceTransformer and their like.

    It is a `peft.PeftModel`, or a transformers model that got its adapter with ``model.add_adapter(config)``.

    Raises:
        SwagError: There is none, or more than one.
    """
    inner = model
    while isinstance(inner, nn.Module) and not is_adapted(inner):
        # torch.compile, DDP; and DeepSpeed's engine. A part of a model may be called "module" too, and is then looked into below.
        wrapped = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if not isinstance(wrapped, nn.Module):
            break
        inner = wrapped
    found = _outermost_adapted(inner)
    if len(found) == 1:
        return found[0]
    if found:
        raise SwagError(f"One model with an adapter is needed, {type(model).__name__} holds {len(found)} of them.")
    raise SwagError(
        f"A PEFT model is needed, got {type(model).__name__}. Wrap it first: "
        'model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", ...)).'
    )


def base_model(model: nn.Module) -> nn.Module:
    """Return the model under the adapter; for a transformers model with ``add_adapter`` that is the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def active_adapter(model: nn.Module) -> str:
    """Return the name of the one active adapter.

    Raises:
        SwagError: Several are active at once.
    """
    # Not a transformers model's own active_adapters(), which first compares PEFT's version with the newest that it asks for.
    layers = (list(layer.active_adapters) for _, layer in adapter_layers(model))
    names = model.active_adapters if isinstance(model, PeftModel) else next(layers, [])
    if len(names) != 1:
        raise SwagError(f"One active adapter is needed, the model has {names}. Name one with adapter_name=...")
    return names[0]


def file_entries(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """Return what the adapter's file would hold: for each key the parameter or buffer itself, not a copy of its values.

    PEFT itself decides what goes into the file, so no rule about LoRA, DoRA, IA3 or ``modules_to_save`` is repeated here.

    Raises:
        SwagError: The model has no such adapter.
    """
    if adapter_name not in model.peft_config:
        raise SwagError(f"The model has no adapter {adapter_name!r}; it has {sorted(model.peft_config)}.")
    # Not "auto", which asks the Hub for the base model's config.json on every call.
    with every_rank(model, adapter_name):
        entries = get_peft_model_state_dict(
            model, state_dict=own_tensors(model), adapter_name=adapter_name, save_embedding_layers=False
        )
    prefix = "" if isinstance(model, PeftModel) else FILE_PREFIX
    return {prefix + key: entry for key, entry in entries.items()}


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and persistent buffer under each of its names, themselves.

    Buffers that are not persistent (the permutations of BOFT, what OSF starts from) are made anew by whoever loads the adapter.
    ``model.state_dict()`` is no such thing on a quantised base: for it bitsandbytes unpacks 4-bit weights in place and rounds their
    scales on the way.
    """
    made_anew = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    buffers = {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in made_anew}
    return dict(model.named_parameters(remove_duplicate=False)) | buffers


def parameter_names(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """Map each key of the adapter's file to the name of the parameter behind it.

    Entries that are no parameter (the frozen projections of VeRA, say) are left out, and of two keys for one tied parameter the
    first in the alphabet stays.

    Raises:
        SwagError: The model has no such adapter.
    """
    entries = file_entries(model, adapter_name)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names: dict[str, str] = {}
    for key in sorted(entries):
        name = name_of.pop(id(entries[key]), None)
        if name is not None:
            names[key] = name
    return names


def _outermost_adapted(module: nn.Module) -> list[nn.Module]:
    if not isinstance(module, nn.Module):
        return []
    if is_adapted(module):
        return [module]
    return [found for child in module.children() for found in _outermost_adapted(child)]
