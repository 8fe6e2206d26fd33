"""Devices and precisions that a command was given, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from swag_trainer.cli.options import CommonOptions
from swag_trainer.errors import SwagError

PRECISIONS = ("float32", "bfloat16", "float16", "float64", "auto")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(CommonOptions):
    """The device to compute on.

    Raises:
        SwagError: This machine has no such device.
    """

    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda:0; default: an accelerator where there is one, else the CPU"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device is not None:
            check_device(self.device)


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        SwagError: The name is not that of a device, or there is none of its kind or number.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    present = ["cpu"] + (
        [] if accelerator is None else [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
    )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SwagError(f"--device {name!r} is not a device. This machine has {', '.join(present)}.") from error
    if device.type != "cpu" and f"{device.type}:{device.index or 0}" not in present:
        raise SwagError(
            f"--device {name!r}: this machine has no such device that PyTorch can use. It has {', '.join(present)}."
        )


def check_precision(name: str) -> None:
    """Refuse a precision that no model is trained in.

    Raises:
        SwagError: It is not one of ``PRECISIONS``.
    """
    if name not in PRECISIONS:
        raise SwagError(f"--dtype is one of {', '.join(PRECISIONS)}, got {name!r}.")
