"""Sharded parameters (FSDP2, tensor parallelism, DeepSpeed): gathering whole weights and writing them back.

Under FSDP2 and DeepSpeed each process holds a part of every weight, and perhaps only a 16-bit copy of it. A reader gathers the
adapter's weights alone, never the base. Its methods are collectives: every process calls them, in the same
order, with the same parameters; so they have no place in a hook that only the first process runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from swag_trainer.errors import SwagError


class WeightReader(Protocol):
    """A way to get at the whole values of parameters, and to set them."""

    def shape(self, parameter: Parameter) -> tuple[int, ...]:
        """Return the shape of the whole weight."""
        ...

    def read(self, parameters: Sequence[Parameter]) -> list[Tensor]:
        """Return the whole weights in the best precision there is, in every process; not copied where they lie here whole."""
        ...

    def stored(self, parameters: Sequence[Parameter]) -> list[Tensor]:
        """Return the whole weights in the parameters' own dtypes: what the adapter's file will hold."""
        ...

    def write(self, parameters: Sequence[Parameter], weights: Sequence[Tensor]) -> None:
        """Set the parameters; every process passes the same whole weights."""
        ...


class WholeReader:
    """Parameters that every process holds whole: a single process, DistributedDataParallel, torch.compile."""

    def shape(self, parameter: Parameter) -> tuple[int, ...]:
        """See `WeightReader.shape`."""
        return tuple(parameter.shape)

    def read(self, parameters: Sequence[Parameter]) -> list[Tensor]:
        """See `WeightReader.read`."""
        return list(parameters)

    stored = read

    def write(self, parameters: Sequence[Parameter], weights: Sequence[Tensor]) -> None:
        """See `WeightReader.write`."""
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)


class DTensorReader:
    """Parameters that are DTensors, some of them or all: FSDP2 (``fully_shard``), tensor parallelism.

    After a forward without a backward, an evaluation say, FSDP2 leaves the outermost weights whole in the modules, beside the pieces
    that the optimizer steps: what is then written into the pieces is not seen by the next forward. So the modules are
    resharded first, which sends nothing.

    Args:
        model: The outermost module.
    """

    def __init__(self, model: nn.Module) -> None:
        from torch.distributed.fsdp import FSDPModule

        self._cut = [module for module in model.modules() if isinstance(module, FSDPModule)]

    def shape(self, parameter: Parameter) -> tuple[int, ...]:
        """See `WeightReader.shape`."""
        return tuple(parameter.shape)  # of a DTensor this is the shape of the whole

    def read(self, parameters: Sequence[Parameter]) -> list[Tensor]:
        """See `WeightReader.read`."""
        self._reshard()
        return [parameter.detach().full_tensor() if _is_dtensor(parameter) else parameter.detach() for parameter in parameters]

    stored = read

    def write(self, parameters: Sequence[Parameter], weights: Sequence[Tensor]) -> None:
        """See `WeightReader.write`."""
        from torch.distributed.tensor import distribute_tensor

        self._reshard()
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                if _is_dtensor(parameter):
                    here = weight.to(device=parameter.to_local().device, dtype=parameter.dtype)
                    weight = distribute_tensor(here, parameter.device_mesh, parameter.placements)
                parameter.copy_(weight)

    def _reshard(self) -> None:
        for module in self._cut:
            module.reshard()


class DeepSpeedReader:
    """Parameters of a DeepSpeed engine, ZeRO stages 1 to 3: the optimizer holds them in float32, cut up over the processes.

    In a 16-bit run the module's own parameters are rounded copies, in which most of the variance is lost; in stage 3 they are empty.
    """

    def shape(self, parameter: Parameter) -> tuple[int, ...]:
        """See `WeightReader.shape`."""
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def read(self, parameters: Sequence[Parameter]) -> list[Tensor]:
        """See `WeightReader.read`."""
        from deepspeed.utils import safe_get_full_fp32_param

        return [safe_get_full_fp32_param(parameter).view(self.shape(parameter)) for parameter in parameters]

    def stored(self, parameters: Sequence[Parameter]) -> list[Tensor]:
        """See `WeightReader.stored`."""
        with _gathered(parameters, modified=False):
            return [parameter.detach().clone() for parameter in parameters]

    def write(self, parameters: Sequence[Parameter], weights: Sequence[Tensor]) -> None:
        """See `WeightReader.write`."""
        # The optimizer's float32 copies stay as they are: the next step of a run that goes on starts from them.
        with _gathered(parameters, modified=True), torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)


def refuse_flattened(model: nn.Module) -> None:
    """Do nothing if every parameter of a model is a weight of its own.

    Raises:
        SwagError: FSDP version 1 flattened them.
    """
    # Of its two ways one leaves the model's own parameters as views, the other puts one parameter in the place of all.
    if any(getattr(parameter, "_fsdp_flattened", False) for parameter in model.parameters()):
        raise SwagError(
            "FSDP version 1 keeps flattened pieces of many weights together, which SWAG does not take apart. Train with "
            'version 2, the default of transformers 5: fsdp_config={"version": 2}.'
        )


def reader_for(parameters: Sequence[Parameter], model: nn.Module) -> WeightReader:
    """Return the reader for parameters of a model.

    Args:
        parameters: Some of the model's parameters.
        model: The outermost module, wrappers included.

    Raises:
        SwagError: One of them was offloaded, or never loaded.
    """
    if any(parameter.is_meta for parameter in parameters):
        raise SwagError(
            "A weight of the adapter is on the meta device: it was offloaded or never loaded. Load the model onto a device."
        )
    if any(hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping") for parameter in parameters):
        return DeepSpeedReader()
    return DTensorReader(model) if any(map(_is_dtensor, parameters)) else WholeReader()


def _is_dtensor(parameter: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


def _gathered(parameters: Sequence[Parameter], *, modified: bool):
    """A context in which the parameters are whole; nothing to do before ZeRO stage 3."""
    import deepspeed

    cut = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    return deepspeed.zero.GatheredParameters(cut, modifier_rank=0 if modified else None, enabled=bool(cut))
