"""The base's Linear layers, computed by oneDNN.

On a CPU torch computes them with MKL. For the several hundred rows of a packed forward oneDNN, which torch brings along and its compiler
uses, took 7 to 8 % less time on an AMD EPYC core (torch 2.13, float32, 480 and 960 rows, layers of 384 x 1536 and 384 x 384).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from swag_trainer.prediction.packed.sampled_modules import Packing, SampledModule


def onednn_layers(model: nn.Module, drawn: Sequence[SampledModule]) -> Iterator[nn.Linear]:
    """Find the Linear layers that oneDNN can compute: float32, on a CPU, and not in a module that is run under ``vmap``."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    own = {child for item in drawn if item.kind != "lora" for child in item.module.modules()}
    own |= {item.module.get_submodule(name.rpartition(".")[0]) for item in drawn if item.kind == "lora" for name in item.keys}
    for module in model.modules():
        if type(module) is nn.Linear and module not in own and not module._forward_hooks and not module._forward_pre_hooks:
            weight = module.weight
            if type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu":
                yield module


def onednn_forward(module: nn.Linear, packing: Packing) -> Callable[[Tensor], Tensor]:
    """The forward to put in the place of a Linear layer's own."""
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        if packing.mode != "packed" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return plain(x)
        rows = x.reshape(-1, x.shape[-1])
        out = torch.ops.mkldnn._linear_pointwise(rows, module.weight, module.bias, "none", [], "")
        return out.view(*x.shape[:-1], -1)

    return forward
