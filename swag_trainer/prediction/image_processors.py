"""Which image processor images go through: the one that was saved beside the adapter, else that of the base model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, PretrainedConfig

from swag_trainer.errors import PosteriorFormatError, SwagError, shortened
from swag_trainer.posterior.regular_file import read_json, shown
from swag_trainer.prediction.loading import LOADING_FAILURES
from swag_trainer.prediction.tokenizers import TokenizerSource
from swag_trainer.prediction.transformers_internals import refuse_remote_code

PROCESSOR_FILE = "preprocessor_config.json"
_MAX_BYTES = 2**20
_MAX_SIDE = 4096  # pixels; an image of 4096 x 4096 takes 200 MB


def image_processor_for(model: Any, given: Any = None) -> Any:
    """Return the image processor for a model.

    Args:
        model: A model; one that was loaded with its posterior knows where its image processor lies.
        given: An image processor or its name; None for the one beside the adapter, or the base model's where there is none.

    Raises:
        SwagError: It cannot be loaded, or it cannot be determined which one it is.
    """
    source: TokenizerSource | None = getattr(model, "swag_tokenizer", None)
    if isinstance(given, str):
        return _loaded(given, token=source.hub.get("token") if source else None)
    if given is not None:
        return given
    if source is None:
        raise SwagError(
            f"The model {type(model).__name__} was not loaded by this pipeline, so its image processor cannot be determined: pass "
            "image_processor=..."
        )
    folder = source.folder_beside_the_adapter(PROCESSOR_FILE, (PROCESSOR_FILE,))
    if folder is not None:
        return load_image_processor(folder, config=source.config)
    hub = {name: value for name, value in source.base_hub.items() if name != "gguf_file"}
    return _loaded(source.base, **hub)


def load_image_processor(folder: str | Path, *, config: PretrainedConfig | None = None) -> Any:
    """Load the image processor that lies in a folder, of its one file alone: no class or code that the folder names is run.

    Args:
        folder: The folder.
        config: Configuration of the model that it is for; it tells the class of one that does not state its own.

    Raises:
        SwagError: It cannot be loaded.
    """
    path = Path(folder) / PROCESSOR_FILE
    settings = read_json(path, max_bytes=_MAX_BYTES)
    for name in (name for name in settings if "size" in name):
        side = next((side for side in _sides(settings[name]) if side > _MAX_SIDE), None)
        if side is not None:
            raise PosteriorFormatError(
                f"{shown(path)} states {shortened(repr(name))} with {shortened(str(side))}; at most {_MAX_SIDE} pixels are accepted."
            )
    try:
        text = json.dumps(settings)
    except RecursionError as error:
        raise PosteriorFormatError(f"{shown(path)} is nested too deeply.") from error
    with tempfile.TemporaryDirectory(prefix="swag_trainer-") as place:
        (Path(place) / PROCESSOR_FILE).write_text(text, encoding="utf-8")
        processor = _loaded(place, shown=str(folder), **({} if config is None else {"config": config}))
    _try(processor, path)
    return processor


def _try(processor: Any, path: Path) -> None:
    """Raise PosteriorFormatError where settings of untrusted types or values make no pixels of an image."""
    try:
        with np.errstate(all="ignore"):
            made = processor(np.full((48, 48, 3), 127, dtype=np.uint8), return_tensors="pt")
        problem = (
            None
            if all(torch.isfinite(torch.as_tensor(value)).all() for value in made.values())
            else "it has NaN or infinite pixels."
        )
    except LOADING_FAILURES as error:
        problem = f"{type(error).__name__}: {str(error)[:300]}"
    if problem is not None:
        raise PosteriorFormatError(f"An image cannot be processed by the settings in {shown(path)}: {problem}")


def _sides(value: Any) -> list[float]:
    """Return the numbers of a size: one, a list, or by name."""
    parts = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    return [part for part in parts if isinstance(part, (int, float))]


def _loaded(name: str, *, shown: str | None = None, **options: Any) -> Any:
    refuse_remote_code(name, options.pop("trust_remote_code", None))
    try:
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **options)
    except LOADING_FAILURES as error:
        raise SwagError(
            f"The image processor of {shown or name!r} cannot be loaded: {type(error).__name__}: {str(error)[:300]} Save one with "
            "image_processor.save_pretrained(folder) beside the adapter, or pass pipeline(..., image_processor=...)."
        ) from error
