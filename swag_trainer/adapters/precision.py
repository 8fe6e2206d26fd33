"""Trained weights in bfloat16 or float16: detection, a warning with the measured cost, upcasting to float32.

PEFT keeps LoRA's matrices in float32 on a base of lower precision, but copies a head in ``modules_to_save`` as it finds it. Such a
head is rounded after every optimizer step and at every draw, before we see it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swag_trainer.adapters.base_checkpoint import base_parameters
from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.peft_layers import (
    BaseTunerLayer,
    ModulesToSaveWrapper,
    adapter_layers,
    copies,
    inserted_modules,
    original_module,
)


def low_precision(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the keys of the weights that are stored with fewer bits than float32."""
    return [key for key, parameter in parameters.items() if parameter.is_floating_point() and parameter.dtype.itemsize < 4]


def low_precision_warning(parameters: Mapping[str, nn.Parameter], *, stay: Collection[str] = ()) -> str | None:
    """Return a warning about trained weights below float32, with their cost and the remedy; None where there are none.

    The measurements: MiniLM-L6 in bfloat16, LoRA in float32, 400 steps, 30 snapshots by `SwagCallback` as it is, one seed, the head's 3,850
    weights. At a learning rate of 5e-3, 2e-4 and 2e-5 the head trained in bfloat16 had a median variance of 0.55, 0.91 and 0 times that
    of the head trained in float32, and 0.8 %, 5.1 % and 86 % of its weights had none at all. Two float32 runs that began about one
    bfloat16 rounding apart: 0.98 and 0 % at 5e-3, 1.00 and 0 % at 2e-5. Rounding only the snapshots of the float32 run put 0 %, 0.1 %
    and 25 % of the variances off by more than a tenth: most is lost while training, not in what is stored.

    Args:
        parameters: The trained weights by key.
        stay: What `upcast_to_float32` returned, where it was asked.
    """
    low = low_precision(parameters)
    if not low:
        return None
    dtypes = " and ".join(sorted({str(parameters[key].dtype).removeprefix("torch.") for key in low}))
    found = f"{len(low)} of {len(parameters)} trained weights are stored in {dtypes}"
    cost = (
        "Trained so, they lose variance that the posterior should have: a bfloat16 head of MiniLM-L6 kept 55 % of it (median over the "
        "weights) at a learning rate of 5e-3, and at 2e-5 86 % of its weights did not move while collecting."
    )
    if set(low) <= set(stay):
        return (
            f"{found} and cannot be held in float32, being biases of frozen layers or cut in pieces over several processes; the first "
            f'is {low[0]!r}. {cost} Load the base model in float32, or train no biases (bias="none").'
        )
    return (
        f"{found}; the first is {low[0]!r}. {cost} "
        'SwagCallback(low_precision="upcast") holds them in float32, 4 bytes for each number instead of 2; the base stays as it is.'
    )


def upcast_to_float32(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Cast trained weights to float32 in place, and let the modules that hold them work on the base's low precision.

    The parameters stay the objects they were, so an optimizer made before goes on; make it afterwards all the same, or its state of
    earlier steps stays low. PEFT's own layers (LoRA, DoRA, IA3, VeRA, trained tokens) cast their inputs and results themselves. A
    module in ``modules_to_save`` gets a hook that casts what comes in to its own dtype, and, unless nothing comes after it, one that
    casts what goes out to the dtype that came in. The hooks are plain functions, so copies of the model and pickles of it have them
    too. Doing it twice does nothing the second time.

    Args:
        model: The model.
        parameters: The weights by key, all that train. Others in the same modules (frozen ones; in a private copy also those shared
            with the user's model) are replaced by float32 copies, never cast in place.

    Returns:
        The keys that stay low: biases of a frozen layer, which multiplies and adds in the low precision, and modules of which a
        parameter is cut in pieces over several processes, whose pieces an assignment would not reach.
    """
    low = {key: parameters[key] for key in low_precision(parameters)}
    fixed = {id(model.get_parameter(name)) for name in base_parameters(model)}
    for _, held in _owners(model):
        if any(_is_sharded(parameter) for parameter in held.parameters()):
            fixed |= {id(parameter) for parameter in held.parameters()}
    stay = [key for key, parameter in low.items() if id(parameter) in fixed]
    raised = {id(parameter): parameter for key, parameter in low.items() if key not in stay}
    for parameter in raised.values():
        parameter.data = parameter.data.float()
        if parameter.grad is not None:
            parameter.grad = parameter.grad.float()
    for owner, held in _owners(model):
        if not any(id(parameter) in raised for parameter in held.parameters()):
            continue
        _replace_the_rest(held)
        if isinstance(owner, ModulesToSaveWrapper):
            _add_hook(held.register_forward_pre_hook, held._forward_pre_hooks, _cast_to_own_dtype)
            if not _is_last(model, owner):
                _add_hook(owner.register_forward_hook, owner._forward_hooks, _cast_to_incoming_dtype)
    return stay


def _owners(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """PEFT's layers and wrappers, each with a module of weights that it put beside or in the place of the base's own."""
    for _, owner in adapter_layers(model):
        if isinstance(owner, ModulesToSaveWrapper):
            yield from ((owner, saved) for saved in copies(owner).values())
        elif isinstance(owner, BaseTunerLayer):
            yield owner, nn.ModuleList(inserted_modules(owner).values())


def _is_sharded(parameter: nn.Parameter) -> bool:
    # DTensors are a subclass; ZeRO-3 puts its piece beside an empty tensor.
    return type(parameter.data) is not Tensor or hasattr(parameter, "ds_id")


def _replace_the_rest(held: nn.Module) -> None:
    # The frozen projections of VeRA, the running statistics of a head's batch norm: one low tensor fails the whole product.
    for module in held.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and low_precision({name: parameter}):
                module._parameters[name] = nn.Parameter(parameter.detach().float(), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.float()


def _is_last(model: nn.Module, wrapper: nn.Module) -> bool:
    """Whether the module is the model's output layer: what it returns may stay float32, as nothing in low precision comes after."""
    with_weights = [child for child in base_model(model).children() if next(child.parameters(), None) is not None]
    return wrapper is with_weights[-1]


def _add_hook(register: Any, present: Mapping[int, Any], hook: Any) -> None:
    if hook not in present.values():
        register(hook, with_kwargs=True)


def _cast_to_own_dtype(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    # Asked for at every call: the whole model may be cast later, as the Trainer does under bf16_full_eval.
    dtype = next(module.parameters()).dtype
    return tuple(_cast(value, dtype) for value in args), {name: _cast(value, dtype) for name, value in kwargs.items()}


def _cast_to_incoming_dtype(wrapper: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    incoming = [value.dtype for value in (*args, *kwargs.values()) if _is_floating(value)]
    # An embedding gets integers: what it would return without us is what the base's own one holds.
    return _cast(output, incoming[0] if incoming else next(original_module(wrapper).parameters()).dtype)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if _is_floating(value) else value
