"""Base models out of GGUF files: which file it was, and training on their dequantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from swag_trainer.errors import SwagError

_QUANTIZER = ("hf_quantizer", "quantization_method")  # what transformers leaves at a model that it loaded through a quantizer


def gguf_file(config: Any) -> str | None:
    """Return the GGUF file that a model was loaded from, relative to its folder or repository, where no other file has its weights.

    Args:
        config: The model's config; None for a model without one.
    """
    quantization = getattr(config, "quantization_config", None)
    found = quantization.get("gguf_file") if isinstance(quantization, dict) else getattr(quantization, "gguf_file", None)
    found = found or getattr(config, "swag_gguf_file", None)
    if not isinstance(found, str):
        return None
    return Path(found).name if Path(found).is_absolute() else found


def as_dequantised(model: nn.Module) -> nn.Module:
    """Let a model that transformers dequantised from a GGUF file be trained on and saved as any other. Other models stay as they are.

    Without a kernel for its products, as on a CPU, transformers 5 writes the weights out in full, and yet calls the model quantised and its quantizer neither trainable nor serializable: the
    Trainer and ``save_pretrained`` refuse it with a ValueError. The name of the file stays in its config, where `gguf_file` finds it.

    Args:
        model: A model of transformers, without its adapter. It is changed.

    Returns:
        The model.

    Raises:
        SwagError: A weight of it is quantised after all.
    """
    config = getattr(model, "config", None)
    name = gguf_file(config)
    if name is None or not getattr(model, "is_quantized", False):
        return model
    packed = next((key for key, weight in model.named_parameters() if not weight.is_floating_point()), None)
    if packed is not None:
        raise SwagError(
            f"The weight {packed!r} of the model in {name!r} is still quantised, so it cannot be trained on. Load it with "
            "from_pretrained(..., gguf_file=..., quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)."
        )
    model.is_quantized = False
    for attribute in _QUANTIZER:
        model.__dict__.pop(attribute, None)
    config.__dict__.pop("quantization_config", None)
    config.swag_gguf_file = name
    return model
