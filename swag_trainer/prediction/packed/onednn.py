"""Linear layers of the base model by oneDNN, on the CPUs where it was measured to be faster than MKL.

torch multiplies with MKL on a CPU, and brings oneDNN along. Which of them is faster depends on the processor. `prefers_onednn` is a fixed
rule over its features, never a measurement while predicting, so two processes on one machine compute alike.

Measured with ``benchmarks/linear_layers.py``: layers of 384 x 384, 384 x 1536 and 1536 x 384 at 32, 128, 480 and 960 rows, float32, one
thread, torch 2.13. Rates are in GFLOP/s; the ratio is that of the times.

* AMD Zen 5 with AVX-512 (family 26): oneDNN multiplied 2.0 to 2.3 x as fast as MKL. Rule: oneDNN.
* AMD EPYC without AVX-512 (family 25): MKL 51 to 77, oneDNN 42 to 71; oneDNN was 0.81 to 1.05 x as fast, 0.94 in the geometric mean.
  Rule: MKL.
* Others, Intel's among them, were not measured. Rule: MKL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from swag_trainer.prediction.packed.sampled_modules import Packing, SampledModule
from swag_trainer.prediction.packed.torch_internals import has_linear_pointwise, hooks_of, linear_pointwise

_AMD_ZEN_5 = ("AuthenticAMD", 26)


class Cpu(NamedTuple):
    """What the rule looks at.

    Attributes:
        vendor: Such as "AuthenticAMD"; "" where it is not known.
        family: The number that ``/proc/cpuinfo`` gives; -1 where it is not known.
        capability: The instructions that torch uses, such as "AVX2" or "AVX512".
    """

    vendor: str
    family: int
    capability: str


def prefers_onednn(cpu: Cpu) -> bool:
    """Return whether oneDNN was measured to be faster than MKL on such a CPU; see the top of this module for the measurements."""
    return (cpu.vendor, cpu.family) == _AMD_ZEN_5 and cpu.capability == "AVX512"


def parse_cpuinfo(text: str, capability: str) -> Cpu:
    """Return the first processor in the text of ``/proc/cpuinfo``."""
    vendor, family = (re.search(rf"^{name}\s*:\s*(\S+)", text, re.MULTILINE) for name in ("vendor_id", "cpu family"))
    number = family[1] if family else ""
    return Cpu(vendor[1] if vendor else "", int(number) if number.isdecimal() else -1, capability)


@cache
def this_cpu() -> Cpu:
    """Return the CPU of this machine. Without ``/proc/cpuinfo``, that is, on other systems than Linux, its vendor is not known."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    return parse_cpuinfo(text, torch.backends.cpu.get_cpu_capability())


def onednn_layers(model: nn.Module, sampled: Sequence[SampledModule]) -> Iterator[nn.Linear]:
    """Find the Linear layers that oneDNN can compute: float32, on a CPU, and not in a module that is run under ``vmap``."""
    if not has_linear_pointwise() or not prefers_onednn(this_cpu()):
        return
    own = {child for item in sampled if item.kind != "lora" for child in item.module.modules()}
    own |= {item.module.get_submodule(name.rpartition(".")[0]) for item in sampled if item.kind == "lora" for name in item.keys}
    for module in model.modules():
        if type(module) is nn.Linear and module not in own and not hooks_of(module):
            weight = module.weight
            if type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu":
                yield module


def onednn_forward(module: nn.Linear, packing: Packing) -> Callable[[Tensor], Tensor]:
    """The forward to put in the place of a Linear layer's own."""
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        if packing.mode != "packed" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return plain(x)
        out = linear_pointwise(x.reshape(-1, x.shape[-1]), module.weight, module.bias)
        return out.view(*x.shape[:-1], -1)

    return forward
