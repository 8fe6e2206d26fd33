"""Initialisations that change the base weights in memory: detection, fingerprints of the changed base, initial weights A0 and B0.

An adapter of such a kind is only half of what was trained. The other half, the changed base, is saved nowhere; it has to come about
again in every process that uses the adapter.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping

import torch
from peft import PeftConfig
from safetensors import safe_open
from torch import Tensor, nn

from swag_trainer.adapters.base_checkpoint import checkpoint_file
from swag_trainer.adapters.keys import base_model, parameter_names
from swag_trainer.adapters.peft_layers import LoraLayer, base_layer, base_weight, is_merged, lora_layers
from swag_trainer.adapters.plain_lora import (
    base_changed_by,
    is_reproducible,
    plain_lora_config,
    rank_axis,
)
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.posterior.saved_adapter import InitialWeights

_PROBES = 4
# How far apart two changed bases may be, relative to the length of the weight. Rounding alone (threads, instruction sets, float32 in
# place of float64) moved the bases of OLoRA by up to 7e-7 and those of PiSSA, whose error grows with the inverse gap between singular
# values, by up to 4e-5 (MiniLM and a decaying spectrum of 1500, ranks 4 to 64). What must be noticed on MiniLM: 0.33 to 0.38 where the
# base is not changed at all, 0.19 to 0.34 with pissa_niter_4 to _64 drawn anew. All wrapped weights 1e-3 away moved logits with a
# spread of 0.75 by 1e-3 to 2e-3, a tenth of what loading the base in bfloat16 did.
_TOLERANCE = 1e-3
_FLOATING = (torch.float32, torch.float16, torch.bfloat16)


def base_changing_initialisation(config: object) -> str | None:
    """Return the initialisation of an adapter if it changes the base weights in memory, else None.

    Args:
        config: A PEFT config, or the contents of adapter_config.json.
    """
    return base_changed_by(config if isinstance(config, Mapping) else vars(config))


def base_fingerprint(model: nn.Module, adapter_name: str) -> dict[str, list[float]]:
    """Return a few numbers for every base weight that an adapter wraps, to tell whether another process has the same weights.

    For a weight W of length |W| (Frobenius): the rounding unit of its dtype, |W|, and four projections u^T W v / |W| on vectors of
    signs u and v that are the same everywhere and forever. A change by D moves each projection like a normal variable of standard
    deviation |D| / |W|, whatever D looks like, so they measure the relative size of a change.

    Args:
        model: The model, base weights in memory. Quantised weights are measured as the numbers that they stand for.
        adapter_name: Which adapter.

    Returns:
        ``{name of the wrapped module in the base model: six numbers}``.

    Raises:
        SwagError: A base weight is not in memory (on the meta device, or offloaded), or the adapter is merged into it.
    """
    return {name: _numbers(_base_weight(name, layer)) for name, layer in _lora_layers(model, adapter_name)}


def check_base(
    model: nn.Module, adapter_name: str, recorded: Mapping[str, list[float]], *, what: str = "The posterior"
) -> None:
    """Refuse a base that is not the one which was recorded.

    Two weights count as the same when they are at most 1e-3 of their length apart, or two rounding units of the coarser dtype where
    that is more: a base in bfloat16 was 0.0024 to 0.0046 away from the one in float32, and its answers no further off than those of
    plain LoRA in bfloat16. Under plain LoRA, quantised and offloaded weights are not compared: the former are others by design, the
    latter were loaded from the checkpoint untouched.

    Args:
        model: The model, its adapter loaded.
        adapter_name: Which adapter.
        recorded: What `base_fingerprint` returned where the adapter was trained.
        what: What was collected there, to begin the message with.

    Raises:
        AdapterMismatchError: The base was not changed, was changed otherwise, or is another one.
        SwagError: A base weight cannot be read.
    """
    initialisation = base_changing_initialisation(model.peft_config[adapter_name])
    layers = dict(_lora_layers(model, adapter_name))
    if set(layers) != set(recorded):
        name = min(set(layers) ^ set(recorded))
        raise AdapterMismatchError(
            f"{what} was collected on an adapter over {len(recorded)} base weights, this one has {len(layers)}; {name!r} is one that only "
            "one of them has."
        )
    for name, layer in layers.items():
        if initialisation is None and (_is_elsewhere(layer) or _is_quantised(layer)):
            continue
        numbers = _numbers(_base_weight(name, layer))
        distance = _distance(numbers, recorded[name])
        if not distance <= max(_TOLERANCE, 2 * numbers[0], 2 * recorded[name][0]):
            raise AdapterMismatchError(
                f"{what} was collected on another base: the weight {name!r} in memory is about {distance:.2g} of its length away from "
                f"the recorded one. {_reason(initialisation)}"
            )


def initial_lora(model: nn.Module, adapter_name: str) -> InitialWeights:
    """Copy A0 and B0 out of a model whose adapter was just initialised, once it is certain that they are that.

    All initialisations that subtract s B0 A0 from the base leave a B0 with orthogonal columns; the first optimizer step ends
    that. Where the base's checkpoint is on this machine as safetensors, the base weight plus s B0 A0 must also be what it holds.

    Args:
        model: The model between ``get_peft_model`` and the first step.
        adapter_name: Which adapter.

    Raises:
        AdapterMismatchError: The base in memory is not the checkpoint's less s B0 A0: something else changed it too.
        SwagError: The initial weights cannot be known (the adapter was loaded, or has been trained), or they would be of no use
            (LoftQ, a quantised base, an adapter that did not change its base).
    """
    config = model.peft_config[adapter_name]
    plain_lora_config(vars(config))
    layers = dict(_lora_layers(model, adapter_name))
    pristine = {name: _pristine_numbers(name, layer, adapter_name, config.init_lora_weights) for name, layer in layers.items()}
    for name, weight in _checkpoint_weights(model, config, layers):
        distance = _distance(_numbers(weight), pristine[name])
        if not distance <= max(_TOLERANCE, 2 * pristine[name][0]):
            raise AdapterMismatchError(
                f"{config.init_lora_weights!r} should have changed the base weight {name!r} as {config.base_model_name_or_path!r} holds "
                f"it, but what it changed is about {distance:.2g} of its length away from that: the base had been changed before, by an "
                "earlier get_peft_model on the same object, say, and no other process could do the same. Load the base anew and make "
                "the adapter once."
            )
    names = {key: name for key, name in parameter_names(model, adapter_name).items() if rank_axis(key) is not None}
    return InitialWeights(
        {key: model.get_parameter(name).detach().to("cpu", torch.float32, copy=True) for key, name in names.items()}, pristine
    )


def initial_lora_if_needed(model: nn.Module, adapter_name: str) -> InitialWeights | None:
    """Return `initial_lora`, or None where a posterior can be saved and loaded without it.

    Args:
        model: The model before the first step; before a checkpoint is loaded to resume from.
        adapter_name: Which adapter is trained.

    Returns:
        A0 and B0; None if the adapter did not change its base, or if it is of a kind that every process initialises alike and its
        initial weights are not known, because training is continued. Then it cannot be exported as plain LoRA, but needs not.

    Raises:
        AdapterMismatchError: No other process could change the base like this one.
        SwagError: The adapter can only be saved as plain LoRA, and its initial weights are not known.
    """
    for name, config in model.peft_config.items():
        if name != adapter_name and base_changing_initialisation(config) is not None:
            raise AdapterMismatchError(
                f"The adapter {adapter_name!r} would be trained on a base that another adapter of the model, {name!r}, changed when it was "
                f"made ({base_changing_initialisation(config)!r}). Saved, it would be loaded on the base without that change. Train it on "
                "a model of its own."
            )
    initialisation = base_changing_initialisation(model.peft_config[adapter_name])
    if initialisation is None:
        return None
    try:
        return initial_lora(model, adapter_name)
    except AdapterMismatchError:
        raise
    except SwagError:
        if is_reproducible(initialisation):
            return None
        raise


def _reason(initialisation: str | None) -> str:
    if initialisation is None:
        return (
            "The adapter is plain LoRA and needs the base as its checkpoint has it; this one is another checkpoint, or was changed in "
            "memory by an adapter that it carried before. Load the base anew."
        )
    if is_reproducible(initialisation):
        return (
            f"{initialisation!r} changes the base in memory when the adapter is made; this base was not changed (low_cpu_mem_usage=True), "
            "was changed twice, or is another checkpoint or of another dtype. Load base and adapter anew, as they were loaded for "
            "training, or export the posterior as plain LoRA where it was trained: swag_trainer.to_plain_lora(posterior)."
        )
    return (
        f"{initialisation!r} changes the base in memory in another way in every process. Save the posterior as plain LoRA where it was "
        "trained: swag_trainer.to_plain_lora(posterior). To resume a training run, seed before the adapter is made, as the first run did."
    )


def _lora_layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, LoraLayer]]:
    for name, layer in lora_layers(model, adapter_name):
        yield name.removeprefix("base_model.model."), layer


def _base_weight(name: str, layer: LoraLayer) -> Tensor:
    if is_merged(layer):
        raise SwagError(f"The base weight {name!r} has an adapter merged into it. Call model.unmerge_adapter() first.")
    if _is_elsewhere(layer):
        raise SwagError(
            f"The base weight {name!r} is not in this process as a whole (offloaded or sharded), so whether the "
            "initialisation changed it as it should cannot be determined. Load the base into memory, without offloading."
        )
    return base_weight(layer).detach()


def _is_elsewhere(layer: LoraLayer) -> bool:
    weight = base_layer(layer).weight
    return weight.device.type == "meta" or weight.numel() == 0


def _is_quantised(layer: LoraLayer) -> bool:
    return base_weight(layer) is not base_layer(layer).weight


def _pristine_numbers(name: str, layer: LoraLayer, adapter_name: str, initialisation: str) -> list[float]:
    """Fingerprint of a base weight as it was before the adapter's initialisation changed it."""
    if _is_quantised(layer):
        raise SwagError(
            f"{initialisation!r} changed the quantised base weight {name!r}, and what was left was rounded anew: no plain LoRA on the "
            "untouched base gives the same answers. Use init_lora_weights=True on a quantised base."
        )
    weight, delta = _base_weight(name, layer), layer.get_delta_weight(adapter_name).detach()
    rounding = torch.finfo(weight.dtype).eps
    if delta.any() and not _columns_are_orthogonal(layer, adapter_name, rounding):
        raise SwagError(
            f"The initial weights of the adapter {adapter_name!r} ({initialisation!r}) are not known: its weights at {name!r} have been "
            "trained since, here or before they were loaded. Without them it cannot be exported as plain LoRA. Make the Trainer right "
            "after get_peft_model, or go on training from an export as plain LoRA."
        )
    return [rounding, *_numbers(weight.float() + delta.float())[1:]]


def _numbers(weight: Tensor) -> list[float]:
    matrix = weight.float().flatten(1)
    rows, columns = (_signs(size, side).to(matrix.device) for size, side in zip(matrix.shape, ("rows", "columns"), strict=True))
    length = matrix.norm()
    projections = (rows * (matrix @ columns)).sum(0, dtype=torch.float32) / length.clamp(min=torch.finfo(torch.float32).tiny)
    return [torch.finfo(weight.dtype).eps, float(length), *projections.double().tolist()]


@functools.lru_cache(maxsize=64)
def _signs(size: int, side: str) -> Tensor:
    """Four vectors of random signs as columns. From a hash: no version of torch draws them differently. Shape (size, 4)."""
    data = hashlib.shake_256(f"swag_trainer base fingerprint, {side}".encode()).digest((size * _PROBES + 7) // 8)
    bits = torch.frombuffer(bytearray(data), dtype=torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.flatten()[: size * _PROBES].view(size, _PROBES).float() * 2 - 1


def _distance(found: list[float], recorded: list[float]) -> float:
    """Estimate |W - W'| / |W'|: the larger of what the lengths say and what the projections say."""
    if len(found) != len(recorded):
        return float("inf")
    (_, length, *projections), (_, recorded_length, *recorded_projections) = found, recorded
    if recorded_length == 0:
        return 0.0 if length == 0 else float("inf")
    squares = [(one - other) ** 2 for one, other in zip(projections, recorded_projections, strict=True)]
    return max(abs(length / recorded_length - 1), (sum(squares) / len(squares)) ** 0.5)


def _columns_are_orthogonal(layer: LoraLayer, adapter_name: str, rounding: float) -> bool:
    if adapter_name not in layer.lora_B:  # PEFT gives an embedding plain LoRA, whose product is 0 at first, in all these kinds
        return False
    columns = layer.lora_B[adapter_name].weight.detach().double().flatten(1)
    columns = columns / columns.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    cosines = (columns.T @ columns).fill_diagonal_(0)
    # MiniLM: at most 5e-7 after each initialisation in float32, 5e-4 in bfloat16; in the layer that moved most at least 3e-5 after one
    # step of Adam at a rate of 1e-5, 3e-4 at 1e-4.
    return float(cosines.abs().max()) <= max(1e-5, rounding)


def _checkpoint_weights(model: nn.Module, config: PeftConfig, layers: Mapping[str, LoraLayer]) -> Iterator[tuple[str, Tensor]]:
    """Those wrapped weights that the base's checkpoint holds under their own name, with or without the prefix ("bert."), and shape."""
    prefix = getattr(base_model(model), "base_model_prefix", "")
    index = checkpoint_file(config, "model.safetensors.index.json")
    files = json.loads(index.read_bytes())["weight_map"].values() if index else ["model.safetensors"]
    for path in filter(None, (checkpoint_file(config, filename) for filename in sorted(set(files)))):
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
            for name, layer in layers.items():
                spellings = (f"{name}.weight", f"{name.removeprefix(f'{prefix}.')}.weight")
                key = next((key for key in spellings if key in keys), None)
                weight = file.get_tensor(key) if key else None
                if weight is not None and weight.shape == base_layer(layer).weight.shape and weight.dtype in _FLOATING:
                    yield name, weight
