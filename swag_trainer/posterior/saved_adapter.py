"""The adapter that a posterior belongs to, as it lies in its two files. What is in them is PEFT's business, not ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError
from swag_trainer.posterior.storage import content_digest, read_tensors, write_together

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class SavedAdapter:
    """An adapter as ``PeftModel.save_pretrained`` writes it.

    Attributes:
        config: What adapter_config.json says.
        tensors: What adapter_model.safetensors holds.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @cached_property
    def digest(self) -> str:
        """Content digest of the tensors; it tells one adapter from another and one training step from the next."""
        return content_digest(self.tensors)

    @property
    def base_model(self) -> str | None:
        """Hub id or folder of the base model."""
        return self.config.get("base_model_name_or_path")

    def with_weights(self, weights: Mapping[str, Tensor]) -> SavedAdapter:
        """Return the same adapter with other values for some of its weights, cast to the file's own dtypes."""
        changed = {key: weight.to(self.tensors[key].dtype) for key, weight in weights.items()}
        return SavedAdapter(self.config, {**self.tensors, **changed})

    @classmethod
    def read(cls, folder: Path) -> SavedAdapter:
        """Read both files.

        Raises:
            PosteriorNotFoundError: One of them is missing; a pickled adapter_model.bin is never opened.
            PosteriorFormatError: One of them is damaged.
        """
        path = folder / ADAPTER_CONFIG
        try:
            config = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise PosteriorNotFoundError(f"There is no adapter in {str(folder)!r}: {ADAPTER_CONFIG} is missing.") from error
        except ValueError as error:
            raise PosteriorFormatError(f"{str(path)!r} is no JSON: {error}.") from error
        if not isinstance(config, dict):
            raise PosteriorFormatError(f"{str(path)!r} should hold a JSON object, it holds a {type(config).__name__}.")
        tensors, _ = read_tensors(folder / ADAPTER_WEIGHTS)
        return cls(config, tensors)

    def files(self) -> dict[str, bytes]:
        """Return what the adapter's two files shall hold, by their names."""
        weights = {key: tensor.contiguous() for key, tensor in self.tensors.items()}
        return {
            ADAPTER_WEIGHTS: safetensors.torch.save(weights, metadata={"format": "pt"}),
            ADAPTER_CONFIG: json.dumps(self.config, indent=2, sort_keys=True).encode(),
        }

    def write(self, folder: Path) -> None:
        """Write both files, replacing what is there."""
        write_together({folder / name: data for name, data in self.files().items()})
