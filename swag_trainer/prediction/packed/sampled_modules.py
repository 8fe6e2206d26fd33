"""Modules with sampled weights: where they are, and the state of the packed forward that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from swag_trainer.adapters.peft_layers import LoraLayer, ModulesToSaveWrapper, copies, is_disabled, is_merged, lora_obstacle
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.dropout import DropoutMasks, PrefixDone
from swag_trainer.prediction.packed.tracing import NO_TENSOR, Call


class NotPacked(Exception):
    """Why draws of this adapter in this model have to run one after the other. Never leaves this package."""


@dataclass
class Packing:
    """The forward that is running, for the modules of a private copy.

    Attributes:
        mode: "plain" for a forward as PEFT would do it, "record" for one that ends where the first sampled weight is needed, "packed".
        num_draws: Draws in this forward.
        num_rows: Rows in this forward, all draws together.
        weights: The sampled weights by key. Shape (num_draws, *shape).
        masks: Those of dropout; None without it.
    """

    mode: Literal["plain", "record", "packed"] = "plain"
    num_draws: int = 0
    num_rows: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    masks: DropoutMasks | None = None

    def begin(self, num_draws: int, num_rows: int, weights: Mapping[str, Tensor]) -> None:
        """Begin a packed forward of ``num_draws`` draws for ``num_rows`` rows each."""
        self.mode, self.num_draws, self.num_rows = "packed", num_draws, num_draws * num_rows
        self.weights = weights

    def within(self, draw: Tensor) -> AbstractContextManager[None]:
        """Take the masks of one draw, whose place among those of this forward is given, under vmap over draws."""
        return nullcontext() if self.masks is None else self.masks.within(draw)

    def enter(self, rows: Tensor) -> None:
        """Called by a module whose weights are sampled, with a tensor that has the rows in its first dimension."""
        if self.mode == "record":
            raise PrefixDone
        if rows.shape[0] != self.num_rows:
            raise NotPacked(f"a module was called with {rows.shape[0]} rows in a batch of {self.num_rows}")


@dataclass(frozen=True)
class SampledModule:
    """A module whose weights are sampled.

    Attributes:
        module: The module in the private copy.
        kind: "lora", "linear" for a trained Linear, or "any".
        keys: Name of the parameter inside the module -> key of the sampled weight.
        adapter_name: The adapter, for LoRA.
    """

    module: nn.Module
    kind: Literal["lora", "linear", "any"]
    keys: Mapping[str, str]
    adapter_name: str

    def takes(self, calls: Sequence[Call]) -> bool:
        """Whether its calls have the rows where the packed form expects them: in front, of what goes in and of what comes out."""
        for call in calls:
            if not call.understood or set(call.inputs) - {None, NO_TENSOR} != {0} or set(call.outputs) - {NO_TENSOR} != {0}:
                return False
        return bool(calls)

    def stacked(self, packing: Packing, name: str) -> Tensor:
        """A weight of every draw; one that is not sampled is the same in each. Shape (S, *shape)."""
        if name in self.keys:
            return packing.weights[self.keys[name]]
        parameter = self.module.get_parameter(name)
        return parameter.detach().expand(packing.num_draws, *parameter.shape)


def sampled_modules(weights: AdapterWeights) -> list[SampledModule]:
    """Find the modules that the adapter's weights are in.

    Raises:
        NotPacked: A weight is in a place that is not understood.
    """
    key_of = {id(parameter): key for key, parameter in zip(weights.layout.keys, weights.parameters(), strict=True)}
    found: list[SampledModule] = []
    for name, layer in weights.model.named_modules():
        kind: Literal["lora", "linear", "any"] | None = None
        if isinstance(layer, LoraLayer):
            kind, module = "lora", layer
        elif isinstance(layer, ModulesToSaveWrapper) and weights.adapter_name in copies(layer):
            module = copies(layer)[weights.adapter_name]
            kind = "linear" if type(module) is nn.Linear else "any"
        if kind is None:
            continue
        keys = {inner: key_of[id(parameter)] for inner, parameter in module.named_parameters() if id(parameter) in key_of}
        if keys:
            if list(layer.active_adapters) != [weights.adapter_name] or is_disabled(layer) or is_merged(layer):
                raise NotPacked(f"{name!r} is merged, switched off or has several active adapters")
            if kind == "lora":
                _check_lora(name, layer, weights.adapter_name, keys)
            found.append(SampledModule(module, kind, keys, weights.adapter_name))
    known = {key for sampled in found for key in sampled.keys.values()}
    unknown = next((key for key in weights.layout.keys if key not in known), None)
    if unknown is not None:
        raise NotPacked(f"{unknown!r} is neither a LoRA matrix nor in modules_to_save")
    return found


def promote_to_parent(
    model: nn.Module, sampled: Sequence[SampledModule], calls: Mapping[nn.Module, Sequence[Call]]
) -> list[SampledModule]:
    """Where a module's calls do not have the rows in front, put in its place the nearest module around it whose calls do.

    DeBERTa projects its relative positions, which no row has, with the query and key projections of the rows; its whole
    self-attention is then run for S draws under vmap.

    Raises:
        NotPacked: There is no such module.
    """
    name_of = {module: name for name, module in model.named_modules()}
    key_of = {id(item.module.get_parameter(name)): key for item in sampled for name, key in item.keys.items()}
    result: dict[nn.Module, SampledModule] = {}
    for item in sampled:
        first = name_of[item.module]
        while not item.takes(calls.get(item.module, ())):
            parent = model.get_submodule(name_of[item.module].rpartition(".")[0])
            if parent is model:
                raise NotPacked(f"neither {first!r} nor a module around it takes and gives rows in the first dimension")
            inside = {name: key_of[id(parameter)] for name, parameter in parent.named_parameters() if id(parameter) in key_of}
            item = SampledModule(parent, "any", inside, item.adapter_name)
        result[item.module] = item
    inner = {module for outer in result for module in outer.modules() if module is not outer}
    return [item for module, item in result.items() if module not in inner]


def _check_lora(name: str, layer: Any, adapter: str, keys: Mapping[str, str]) -> None:
    obstacle = lora_obstacle(layer, adapter)
    if obstacle is not None:
        raise NotPacked(f"{name!r} {obstacle}")
    matrices = {f"lora_{letter}.{adapter}.weight" for letter in "AB"}
    other = next((inner for inner in keys if inner not in matrices), None)
    if other is not None:
        raise NotPacked(f"{name!r} trains its {other!r} too")
