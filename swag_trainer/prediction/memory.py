"""Memory that predictions need, by calculation: base model, posterior, draws, activations and caches, before a weight is loaded.

The base model is made of fake tensors, which have shapes and no content, from its config.json alone. One forward of it is followed
operation by operation, so that the most that lives at once is counted, whatever the architecture.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.initialization import no_init_weights

from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.base_config import load_base_config
from swag_trainer.prediction.loading import base_of, gguf_settings, label_settings, one_error
from swag_trainer.prediction.packed.chunks import CPU_TOKENS, draws_per_forward
from swag_trainer.prediction.task_resolution import resolve_task
from swag_trainer.tasks.base import Task, positions_of_images

_FLOAT32 = 4
_BLOCK = 64  # weights of a 4-bit base that share a scale, a float32
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class MemoryEstimate:
    """What predicting with S draws takes, in bytes.

    Attributes:
        base: Weights and buffers of the base model.
        adapter: The adapter's weights in the model, and in the private copy that draws are put into; float32.
        posterior: The posterior and its saved adapter, on the CPU whatever the model's device.
        draws: S weight vectors; float32.
        activations: The most that one forward holds at once. On a GPU as many draws are packed into a forward as half of the free memory
            holds: this is then the least, of one draw.
        caches: What is kept between the forwards of a batch: the outputs that are the same for every draw, and for generation the keys and
            values of every draw.
        draws_per_forward: How many draws that forward is of.
        num_weights: Of the base model.
    """

    base: int
    adapter: int
    posterior: int
    draws: int
    activations: int
    caches: int
    draws_per_forward: int
    num_weights: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.adapter + self.posterior + self.draws + self.activations + self.caches

    def as_document(self) -> dict[str, int]:
        """Return everything by name, as JSON values."""
        return {**asdict(self), "total": self.total}


def estimate_memory(
    posterior: WeightPosterior,
    *,
    num_samples: int = 10,
    batch_size: int = 32,
    length: int = 512,
    max_tokens: int | None = CPU_TOKENS,
    dtype: torch.dtype | None = None,
    bits: int | None = None,
    base_model: str | Path | None = None,
    name: str = "",
) -> MemoryEstimate:
    """Calculate what predictions need.

    Python, the libraries and what the allocator keeps are not in it. The forward of a language model is one that needs the logits of one
    position, as the letters of multiple choice do.

    Args:
        posterior: With its adapter and the name of its base model.
        num_samples: S.
        batch_size: Rows of a batch.
        length: Tokens of a row; of a base that takes fewer, that many. Images have the size that the config states.
        max_tokens: How many tokens of all draws a forward has at most; None for those of one draw.
        dtype: Of the base model; None for the one in its config, as the command line loads it.
        bits: 4 or 8 for a base that is quantised while it is loaded; None for what its config says.
        base_model: Folder or Hub name of the base model, where it lies elsewhere than adapter_config.json says.
        name: Where the posterior lies, for errors.

    Raises:
        SwagError: The config of the base cannot be loaded, or a forward of its architecture cannot be calculated.
    """
    if min(num_samples, batch_size, length) < 1 or bits not in (None, 4, 8):
        raise SwagError(
            f"num_samples={num_samples}, batch_size={batch_size} and length={length} must be at least 1, and bits={bits} 4 or 8."
        )
    tensors, name = posterior.adapter.tensors, name or str(posterior.adapter.base_model)
    with one_error(name):
        task = resolve_task(posterior, given=None, name=name, base_model=base_model)
        config = _config_of(posterior, base_model, name)
    length = min(length, getattr(config.get_text_config(), "max_position_embeddings", None) or length)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        try:
            with no_init_weights():
                model = task.auto_model.from_config(config, dtype=dtype or config.dtype or torch.float32).eval()
            batch = _inputs(model, batch_size, length)
            positions = batch_size * (positions_of_images(model, batch["pixel_values"]) if "pixel_values" in batch else length)
            per_forward = 1 if max_tokens is None else draws_per_forward(num_samples, tokens=positions, max_tokens=max_tokens)
            peak = _peak_of_forward(model, _inputs(model, per_forward * batch_size, length), tensors)
            kept = _kept_outputs(model, batch, _adapted_modules(tensors))
        except Exception as error:  # of any architecture's code, which may ask for values that fake tensors do not have
            raise SwagError(
                f"The memory of {type(config).__name__} cannot be calculated: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        base = _base_bytes(model, _bits_of(config) if bits is None else bits)
        num_weights = sum(parameter.numel() for parameter in model.parameters())
    return MemoryEstimate(
        base=base,
        adapter=_FLOAT32 * (sum(tensor.numel() for tensor in tensors.values()) + posterior.layout.size),
        posterior=sum(
            {each.data_ptr(): each.nbytes() for each in map(Tensor.untyped_storage, _tensors_in(posterior))}.values()
        ),
        draws=_FLOAT32 * num_samples * posterior.layout.size,
        activations=peak,
        caches=kept + _keys_and_values(task, config, model.dtype, num_samples * batch_size * length),
        draws_per_forward=per_forward,
        num_weights=num_weights,
    )


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as they live.

    Attributes:
        peak: The most bytes that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._tensors: set[int] = set()
        self._views: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf) not in self._tensors:
                storage = leaf.untyped_storage()
                place, size = storage._cdata, storage.nbytes()
                if not self._views[place]:
                    self._now += size
                    self.peak = max(self.peak, self._now)
                self._views[place] += 1
                self._tensors.add(id(leaf))
                weakref.finalize(leaf, self._ended, id(leaf), place, size)
        return result

    def also(self, size: int) -> None:
        """Count bytes that live beside the tensors of this moment."""
        self.peak = max(self.peak, self._now + size)

    def _ended(self, tensor: int, place: int, size: int) -> None:
        self._tensors.discard(tensor)
        self._views[place] -= 1
        if not self._views[place]:
            self._now -= size


def _config_of(posterior: WeightPosterior, base_model: str | Path | None, name: str) -> Any:
    source, revision = base_of(posterior, base_model, name)
    gguf = gguf_settings(posterior, source, None)
    return load_base_config(source, revision=revision, **gguf, **label_settings(posterior.record))


def _inputs(model: Any, rows: int, length: int) -> dict[str, Any]:
    """Return what a forward is given: tokens or images, and for a language model how many logits are read."""
    if model.main_input_name == "pixel_values":
        size = getattr(model.config, "image_size", 224)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.zeros(rows, getattr(model.config, "num_channels", 3), height, width, dtype=model.dtype)}
    inputs: dict[str, Any] = {"input_ids": torch.zeros(rows, length, dtype=torch.long)}
    return inputs | ({"logits_to_keep": 1, "use_cache": False} if model.can_generate() else {})


def _base_bytes(model: Any, bits: int | None) -> int:
    """Return the bytes of all weights and buffers; bits are those of the linear layers, but for the head."""
    whole = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if bits is None:
        return whole
    linear = [layer.weight for layer in model.base_model.modules() if isinstance(layer, nn.Linear)]
    scales = [weight.numel() // _BLOCK if bits == 4 else len(weight) for weight in linear]
    smaller = sum(weight.numel() * bits // 8 + _FLOAT32 * scale for weight, scale in zip(linear, scales, strict=True))
    return whole - sum(weight.nbytes for weight in linear) + smaller


def _bits_of(config: Any) -> int | None:
    """Return 4 or 8 where the base was saved quantised by bitsandbytes."""
    stated = getattr(config, "quantization_config", None) or {}
    stated = stated if isinstance(stated, Mapping) else stated.to_dict()
    return 4 if stated.get("load_in_4bit") else 8 if stated.get("load_in_8bit") else None


def _adapted_modules(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the modules that the weights of an adapter's file belong to."""
    return {key.removeprefix(_PREFIX).partition(".lora_")[0].removesuffix(".weight").removesuffix(".bias") for key in tensors}


def _peak_of_forward(model: nn.Module, inputs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Return the most bytes that live at once in a forward with the adapter, whose part in a layer is as large as the layer's output."""
    live = LiveTensors()
    adapted = _adapted_modules(tensors)

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        live.also(sum(_FLOAT32 * leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)))

    hooks = [module.register_forward_hook(leave) for name, module in model.named_modules() if name in adapted]
    with live:
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return live.peak


def _kept_outputs(model: nn.Module, inputs: Mapping[str, Any], adapted: set[str]) -> int:
    """Return the bytes of what the largest modules without an adapted one return before the first of those is entered."""
    names = {name: module for name, module in model.named_modules() if name}
    holding = {name for name in names if any(each == name or each.startswith(f"{name}.") for each in adapted)}
    kept, is_over = [0], [False]

    def enter(*_: Any) -> None:
        is_over[0] = True

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        if not is_over[0]:
            kept[0] += sum(leaf.nbytes for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    hooks = [names[name].register_forward_pre_hook(enter) for name in adapted & set(names)]
    hooks += [
        module.register_forward_hook(leave)
        for name, module in names.items()
        if name not in holding and (name.rpartition(".")[0] in holding or "." not in name)
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return kept[0]


def _keys_and_values(task: Task, config: Any, dtype: torch.dtype, positions: int) -> int:
    """Return the bytes of the keys and values of a language model that generates; 0 for other tasks."""
    if task.hub_tag != "text-generation":
        return 0
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * dtype.itemsize * positions


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor that a value holds."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for item in fields(value):
            yield from _tensors_in(getattr(value, item.name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors_in(each)
