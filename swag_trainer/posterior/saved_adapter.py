"""The adapter that a posterior belongs to, as it lies in its two files. What is in them is PEFT's business, not ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.adapter_settings import ADAPTER_CONFIG, read_adapter_config, settings_of
from swag_trainer.posterior.atomic import Content, write_together
from swag_trainer.posterior.coefficient_map import weight_key
from swag_trainer.posterior.storage import content_digest
from swag_trainer.posterior.tensor_file import file_content, read_tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class InitialWeights:
    """Weights of an adapter at the moment when its initialisation had just changed the base model in memory.

    Attributes:
        tensors: The weights by the keys of the adapter's file, float32, on the CPU.
        pristine: A fingerprint of each base weight as it was before.
    """

    tensors: Mapping[str, Tensor]
    pristine: Mapping[str, list[float]]

    @staticmethod
    def owns(name: str) -> bool:
        """Return whether a tensor in a posterior's file is one of those that `as_tensors` names."""
        return name.startswith(("initial/", "pristine/"))

    def as_tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors with names of their own, to travel in a posterior's file."""
        return {f"initial/{key}": tensor for key, tensor in self.tensors.items()} | {
            f"pristine/{name}": torch.tensor(numbers, dtype=torch.float64) for name, numbers in self.pristine.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, where: str) -> InitialWeights | None:
        """Undo `as_tensors`; tensors of other names are left alone.

        Returns:
            The value, or None where ``tensors`` has none.

        Raises:
            PosteriorFormatError: A dtype or shape that `as_tensors` does not write.
        """
        initial = {name.removeprefix("initial/"): tensor for name, tensor in tensors.items() if name.startswith("initial/")}
        pristine = {name.removeprefix("pristine/"): tensor for name, tensor in tensors.items() if name.startswith("pristine/")}
        wrong = [key for key, tensor in initial.items() if tensor.dtype != torch.float32 or tensor.dim() < 2]
        wrong += [name for name, tensor in pristine.items() if tensor.dtype != torch.float64 or tensor.dim() != 1]
        if wrong or bool(initial) != bool(pristine):
            raise PosteriorFormatError(
                f"{where} should hold the initial weights of its adapter in float32 and the fingerprints of their base in float64; "
                f"{str(wrong[:1] or 'one of the two')[:200]} is not as expected."
            )
        initial = {key: tensor.clone() for key, tensor in initial.items()}  # not a view that keeps the whole file in memory
        return cls(initial, {name: tensor.tolist() for name, tensor in pristine.items()}) if initial else None


@dataclass(frozen=True, eq=False)
class SavedAdapter:
    """An adapter as ``PeftModel.save_pretrained`` writes it.

    Attributes:
        config: Contents of adapter_config.json.
        tensors: Contents of adapter_model.safetensors.
        initial: Its weights at its initialisation, where that changed the base model in memory and they are known.
        is_reproducible: Whether another process that loads the two files gets the function that the adapter computes here.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    initial: InitialWeights | None = None
    is_reproducible: bool = True

    @cached_property
    def digest(self) -> str:
        """Content digest of the tensors; it distinguishes adapters, and training steps of one."""
        return content_digest(self.tensors)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings that change what the adapter computes, see `settings_of`."""
        return settings_of(self.config)

    @property
    def base_model(self) -> str | None:
        """Hub id or folder of the base model."""
        return self.config.get("base_model_name_or_path")

    @property
    def base_is_folder(self) -> bool:
        """Whether the base model is named by a folder of this machine, or by a path that no repository on the Hub can have."""
        named = self.base_model
        return named is not None and (
            Path(named).is_absolute() or named.startswith(".") or Path(named).is_dir() or named.count("/") > 1
        )

    def with_base_model(self, name: str) -> SavedAdapter:
        """Return the same adapter whose settings name another base model: its id on the Hub in the place of a folder, for instance."""
        return replace(self, config={**self.config, "base_model_name_or_path": name, "revision": None})

    def with_weights(self, weights: Mapping[str, Tensor]) -> SavedAdapter:
        """Return the same adapter with other values for some of its weights, cast to the file's own dtypes."""
        changed = {key: weight.to(self.tensors[key].dtype) for key, weight in weights.items()}
        return replace(self, tensors={**self.tensors, **changed})

    @classmethod
    def read(cls, folder: Path) -> SavedAdapter:
        """Read both files.

        Raises:
            PosteriorNotFoundError: One of them is missing; a pickled adapter_model.bin is never opened.
            PosteriorFormatError: One of them is damaged, or states what no adapter can have.
        """
        config = read_adapter_config(folder / ADAPTER_CONFIG)
        tensors, _ = read_tensors(folder / ADAPTER_WEIGHTS)
        # A checkpoint of `train_coefficients` has the coefficients beside the weights that they stand for, which plain PEFT reads too.
        return cls(config, {key: tensor for key, tensor in tensors.items() if weight_key(key) is None})

    def files(self) -> dict[str, Content]:
        """Return the content of the adapter's two files, by their names; it can be written once."""
        return {
            ADAPTER_WEIGHTS: file_content(self.tensors, {"format": "pt"}),
            ADAPTER_CONFIG: json.dumps(self.config, indent=2, sort_keys=True).encode(),
        }

    def write(self, folder: Path) -> None:
        """Write both files, replacing what is there."""
        write_together({folder / name: data for name, data in self.files().items()})
