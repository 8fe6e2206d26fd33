"""Settings of an adapter, adapter_config.json: strict reading, and comparison of those that change what the adapter computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError, shortened
from swag_trainer.posterior.regular_file import read_json, shown

ADAPTER_CONFIG = "adapter_config.json"

_MAX_TEXT = 4096
_MAX_NUMBER = 2.0**63
# Settings that do not change what saved weights mean; neither does any dropout. The base model is compared apart.
_NEVER_COMPARED = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "runtime_config"}
# Settings that must be equal even where only one of two files of a run states them; the others may be news of a later PEFT.
_ALWAYS_COMPARED = {"alpha_pattern", "lora_alpha", "peft_type", "r", "target_modules", "use_dora", "use_rslora"}
# PEFT makes sets of these, and a set is written in another order by each process.
_UNORDERED = {"exclude_modules", "feedforward_modules", "modules_to_save", "target_modules"}

_NAMES = (str, list, type(None))
# What is read here or compared with other values, with the types that it may have. All other settings are PEFT's business.
_TYPES: Mapping[str, tuple[type, ...]] = {
    "alpha_pattern": (dict, type(None)),
    "base_model_name_or_path": (str, type(None)),
    "exclude_modules": _NAMES,
    "feedforward_modules": _NAMES,
    "init_lora_weights": (bool, str, type(None)),
    "layers_pattern": _NAMES,
    "layers_to_transform": (int, list, type(None)),
    "lora_alpha": (int, float, type(None)),
    "modules_to_save": (list, type(None)),
    "peft_type": (str,),
    "r": (int, type(None)),
    "rank_pattern": (dict, type(None)),
    "revision": (str, type(None)),
    "target_modules": _NAMES,
    "task_type": (str, type(None)),
}


def read_adapter_config(path: Path) -> dict[str, Any]:
    """Read adapter_config.json; nothing in it is trusted to have the right type or size.

    Raises:
        PosteriorNotFoundError: There is no such file.
        PosteriorFormatError: It is not a regular file of at most 4 MiB with strict JSON, or a setting is of another type or size than
            PEFT writes.
    """
    try:
        config = read_json(path)
    except PosteriorNotFoundError as error:
        raise PosteriorNotFoundError(f"There is no adapter in {shown(path.parent)}: {path.name} is missing.") from error
    if "peft_type" not in config:
        raise PosteriorFormatError(f"{shown(path)} does not state peft_type, by which PEFT knows the kind of adapter.")
    for name, value in config.items():
        kinds = _TYPES.get(name)
        if kinds is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise PosteriorFormatError(f"{shown(path)} states {name}={shortened(repr(value))}; {expected} was expected.")
        problem = _problem(name, value)
        if problem is not None:
            raise PosteriorFormatError(f"{shown(path)} states {shortened(repr(name))}: {problem}.")
    return config


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that change what an adapter computes, as JSON texts by name; what is not set is left out.

    >>> settings_of({"lora_alpha": 8, "lora_dropout": 0.1, "use_dora": False, "target_modules": ["value", "query"]})
    {'lora_alpha': '8', 'target_modules': '["query", "value"]'}

    Args:
        config: The contents of adapter_config.json.
    """
    compared = sorted(name for name in config if name not in _NEVER_COMPARED and not name.endswith("dropout"))
    meanings = {name: _meaning(name, config[name]) for name in compared}
    return {name: json.dumps(value, sort_keys=True) for name, value in meanings.items() if value is not None}


def differing_setting(config: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return a setting by which two files of one run say something else about the same weights, or None.

    A setting that one of the two does not state is compared only where every version of PEFT states it.
    """
    ours, theirs = settings_of(config), settings_of(other)
    compared = {name for name in {*ours, *theirs} if name in config and name in other} | _ALWAYS_COMPARED
    return next((name for name in sorted(compared) if ours.get(name) != theirs.get(name)), None)


def _meaning(name: str, value: Any) -> Any:
    return sorted(map(str, value)) if name in _UNORDERED and isinstance(value, list) else value or None


def _problem(name: str, value: Any) -> str | None:
    """Return what is wrong with the text, the names or the numbers of a setting."""
    if isinstance(value, dict):
        parts = [part for item in value.items() for part in item]
    else:
        parts = value if isinstance(value, list) else [value]
    if name in ("modules_to_save", "target_modules", "exclude_modules", "feedforward_modules", "layers_pattern") and isinstance(
        value, list
    ):
        odd = next((part for part in parts if not isinstance(part, str)), None)
        if odd is not None:
            return f"{shortened(repr(odd))} is not the name of a module"
    for part in (name, *parts):
        if isinstance(part, (dict, list)):
            deeper = _problem("", part)
            if deeper is not None:
                return deeper
        if isinstance(part, str) and (len(part) > _MAX_TEXT or not part.isprintable()):
            return f"the text {shortened(repr(part))} is longer than {_MAX_TEXT} characters, or cannot be printed"
        if isinstance(part, int) and abs(part) >= _MAX_NUMBER:
            return f"the number {str(part)[:50]} does not fit into 64 bits"
    return None
