"""Settings of an untrusted adapter: what PEFT gets of them, with limits, and with names of modules in the place of patterns.

PEFT takes ``target_modules``, ``exclude_modules``, ``layers_pattern`` and the keys of ``rank_pattern`` and ``alpha_pattern`` as regular
expressions, with which a file can block the process for ever; and it makes matrices of every size that the settings ask for. The
tensors of the file say which modules are adapted and with which ranks, so no pattern of the file reaches the module ``re``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from swag_trainer.adapters.peft_layers import adapter_layers, config_class, is_prompt_learning, lora_layers, weight_prefix
from swag_trainer.adapters.plain_lora import base_changed_by
from swag_trainer.errors import PosteriorFormatError, SwagError, shortened
from swag_trainer.posterior.adapter_settings import ADAPTER_CONFIG
from swag_trainer.posterior.saved_adapter import SavedAdapter

_FILE_PREFIX = "base_model.model."
_METACHARACTERS = set(r"\^$*+?{}[]|()")
# Kinds that load other adapters or models by names in the file, and one that changes the forward of the whole model.
_REFUSED_KINDS = ("ADAPTION_PROMPT", "SHADOW", "XLORA")
_REFUSED = ("layer_replication", "megatron_config")
# PEFT needs none of these to load an adapter; the last is not saved by PEFT.
_LEFT_OUT = ("auto_mapping", "megatron_core", "runtime_config")
_FREE_TEXT = {"base_model_name_or_path", "revision"}
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")
# Seeds and steps have no size.
_UNBOUNDED = re.compile(r"seed|key|step|warmup|interval|tinit|tfinal|deltaT|alpha|scaling|niter", re.IGNORECASE)
_MAX_NUMBER = 1e9
_FEWEST_NAMES, _SMALLEST_LIMIT = 64, 1024
_LARGEST_TOKEN = 2**31
# The rank that an initialisation reaches may be smaller than the one that was asked for: that of the base weight.
_MAX_RANK_RATIO = 64


def loadable_settings(adapter: SavedAdapter, *, name: str) -> dict[str, Any]:
    """Return the settings with which PEFT may load an adapter.

    Args:
        adapter: What its two files hold.
        name: What errors call it.

    Raises:
        PosteriorFormatError: A setting is unknown, is a pattern that the tensors do not replace, or asks for more than the file's
            tensors have.
        SwagError: The kind of adapter is not supported.
    """
    where, config = f"{ADAPTER_CONFIG} of {name!r}", dict(adapter.config)
    known = _known_settings(config, where)
    for setting in _REFUSED:
        if config.get(setting):
            raise SwagError(f"{where} sets {setting}, which changes far more than an adapter's weights; it is not loaded.")
    unknown = sorted(setting for setting, value in config.items() if setting not in known and value)
    if unknown:
        raise PosteriorFormatError(
            f"{where} states {shortened(repr(unknown[0]))}, which this version of PEFT does not know: the same weights could mean another "
            "function. Update PEFT."
        )
    config = {setting: value for setting, value in config.items() if setting in known and setting not in _LEFT_OUT}
    sizes = [size for tensor in adapter.tensors.values() for size in tensor.shape]
    for setting, value in config.items():
        problem = _oversized(setting, value, max([_SMALLEST_LIMIT, *sizes]), max(_FEWEST_NAMES, 4 * len(adapter.tensors)))
        if problem:
            raise PosteriorFormatError(f"{where} states {problem}")
    config |= _without_patterns_of_modules(config, adapter.tensors, where)
    if config["peft_type"] == "LORA" and not config.get("target_parameters"):
        config |= _ranks_and_alphas(config, adapter.tensors, where)
    for setting, value in config.items():
        pattern = next((text for text in _texts(value) if _is_pattern(text)), None)
        written_anew = setting in ("rank_pattern", "alpha_pattern") and not config.get("target_parameters")
        if pattern is not None and setting not in _FREE_TEXT and not written_anew:
            raise _refusal(where, setting, pattern)
    return config


def without_patterns(config: Mapping[str, Any], model: nn.Module, adapter_name: str) -> dict[str, Any]:
    """Return the settings of a model's adapter with names of modules in the place of patterns that no tensor replaces.

    `loadable_settings` takes no pattern of a file; here the pattern is that of the user's own model.

    Args:
        config: The contents of adapter_config.json, as PEFT wrote it.
        model: The model that holds the adapter.
        adapter_name: Which adapter.
    """
    written, names = dict(config), None
    if config.get("target_parameters") and any(_is_pattern(text) for name in _PATTERNS for text in _texts(config.get(name))):
        # The tensors do not tell a module that is adapted from one of which single parameters are.
        found = lora_layers(model, adapter_name)
        layers = {_module(name) for name, layer in found if not hasattr(layer, "parameter_name")}
        written |= {
            "target_modules": sorted(layers),
            "exclude_modules": None,
            "layers_to_transform": None,
            "layers_pattern": None,
        }
    for setting, value in config.items():
        if setting == "feedforward_modules" and isinstance(value, str) and _is_pattern(value):
            layers = {_module(name): layer for name, layer in adapter_layers(model)}
            written[setting] = sorted(name for name, layer in layers.items() if getattr(layer, "is_feedforward", False))
        elif setting.endswith("_pattern") and isinstance(value, dict) and any(map(_is_pattern, value)):
            if names is None:
                names = sorted({_adapted_name(name, layer) for name, layer in adapter_layers(model)})
            # As PEFT compares them: the first that matches counts.
            first = {name: next((key for key in value if re.match(rf"(.*\.)?({key})$", name)), None) for name in names}
            written[setting] = {name: value[key] for name, key in first.items() if key is not None}
    return written


def _known_settings(config: Mapping[str, Any], where: str) -> set[str]:
    kind = config_class(config["peft_type"])
    if kind is None:
        raise PosteriorFormatError(
            f"{where} states peft_type={shortened(repr(config['peft_type']))}, a kind of adapter that this version of PEFT does not have."
        )
    if is_prompt_learning(kind) or config["peft_type"] in _REFUSED_KINDS:
        raise SwagError(
            f"{where} states peft_type={config['peft_type']!r}; adapters of this kind are not supported. Use LoRA, for instance."
        )
    return {item.name for item in fields(kind)}


def _without_patterns_of_modules(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Return what replaces ``target_modules`` and its companions where one of them is a pattern; nothing where none is."""
    found = [(name, text) for name in _PATTERNS for text in _texts(config.get(name)) if _is_pattern(text)]
    if not found:
        return {}
    prefix = weight_prefix(config["peft_type"])
    modules = {module for key in tensors if prefix and (module := _adapted_module(key, prefix)) is not None}
    if not modules:
        raise _refusal(where, *found[0])
    return {"target_modules": sorted(modules), "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}


def _ranks_and_alphas(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Return ``rank_pattern`` and ``alpha_pattern`` with the full name of each LoRA module, escaped, the longest first."""
    found = {
        module: len(tensor)
        for key, tensor in tensors.items()
        if (".lora_A." in key or key.endswith(".lora_embedding_A"))
        and tensor.dim()
        and (module := _adapted_module(key, "lora_")) is not None
    }
    rank, patterns = config.get("r"), config.get("rank_pattern") or {}
    alpha, alphas = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    if rank is None or alpha is None:
        raise PosteriorFormatError(f"{where} states r={rank} and lora_alpha={alpha}; numbers were expected.")
    plain = not any(_is_pattern(_plain(key)) for key in patterns)
    ranks = {module: _first(patterns, module, rank) if plain else size for module, size in found.items()}
    for module, size in found.items():
        asked = ranks[module]
        smaller = base_changed_by(config) is not None and size < asked <= _MAX_RANK_RATIO * size
        if asked != size and not smaller:
            raise PosteriorFormatError(
                f"{where} asks for the rank {shortened(repr(asked))} in {shortened(repr(module))}, whose tensors have the rank {size}."
            )
    for key, value in alphas.items():
        if _is_pattern(_plain(key)):
            raise _refusal(where, "alpha_pattern", key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise PosteriorFormatError(f"{where} states alpha_pattern with {shortened(repr(value))}; a number was expected.")
    modules = sorted(found, key=len, reverse=True)
    return {
        "rank_pattern": {re.escape(module): ranks[module] for module in modules if ranks[module] != rank},
        "alpha_pattern": {re.escape(module): value for module in modules if (value := _first(alphas, module, alpha)) != alpha},
    }


def _first(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first key that is a module's name or the end of it, as PEFT does."""
    for key, value in patterns.items():
        name = _plain(key)
        if module == name or (not key.startswith("^") and module.endswith(f".{name}")):
            return value
    return default


def _plain(key: str) -> str:
    """Return a pattern without the marks that change nothing at the ends of a name, and with its escaped dots as dots."""
    return key.removeprefix("^").removesuffix("$").replace(r"\.", ".")


def _oversized(setting: str, value: Any, limit: int, names: int) -> str | None:
    """Return which number of a setting is out of range, or that it has too many entries; None where all fits."""
    parts = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if len(parts) > names and not all(isinstance(part, int) for part in parts):
        return f"{setting} with {len(parts)} entries; {names} are enough for the file's tensors."
    for part in parts:
        if isinstance(part, (dict, list)):
            deeper = _oversized(setting, part, _LARGEST_TOKEN, max(names, _LARGEST_TOKEN))
            if deeper:
                return deeper
        elif isinstance(part, (int, float)) and not isinstance(part, bool):
            of_size = isinstance(part, int) and not isinstance(value, list) and not _UNBOUNDED.search(setting)
            largest = limit if of_size else _LARGEST_TOKEN if isinstance(part, int) else _MAX_NUMBER
            if abs(part) > largest:
                return f"{setting}={str(part)[:50]}; at most {largest:g} is accepted, as the file's tensors are no larger."
    return None


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _is_pattern(text: str) -> bool:
    """Has a regular expression of this text a meaning other than the text itself? A dot, which any name may have, does not count."""
    return not _METACHARACTERS.isdisjoint(text)


def _adapted_module(key: str, prefix: str) -> str | None:
    """Return the module that a weight belongs to, by the first part of its name that begins as the kind's weights do."""
    parts = key.removeprefix(_FILE_PREFIX).split(".")
    place = next((index for index, part in enumerate(parts) if part.startswith(prefix)), 0)
    return ".".join(part for part in parts[:place] if part != "base_layer") or None


def _module(name: str) -> str:
    return ".".join(part for part in name.removeprefix(_FILE_PREFIX).split(".") if part != "base_layer")


def _adapted_name(name: str, layer: nn.Module) -> str:
    """Return what PEFT compares ``rank_pattern`` with: the name of a module, or of the single parameter that is adapted in it."""
    parameter = getattr(layer, "parameter_name", None)
    return _module(name) if parameter is None else f"{_module(name)}.{parameter}"


def _refusal(where: str, setting: str, pattern: str) -> PosteriorFormatError:
    return PosteriorFormatError(
        f"{where} states {setting} with the pattern {shortened(repr(pattern))}, and patterns of a file are not evaluated: they can block "
        "the process for ever. Save the posterior again where it was trained, or write the names of the modules in its place."
    )
