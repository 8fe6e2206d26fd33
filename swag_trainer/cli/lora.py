"""LoRA for a classifier: which layers get it, and which modules train and are saved as a whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from swag_trainer.adapters.peft_layers import default_targets

_ALL_LINEAR = "all-linear"
_HEADS = ("classifier", "score")  # what PEFT trains and saves in every classifier of texts
# Query and value of the attention, by the names that architectures give them; in some they are one projection.
_ATTENTION = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("q", "v"),
)


def lora_config(
    base: PreTrainedModel,
    missing_weights: Collection[str],
    *,
    target_modules: Sequence[str] | None,
    modules_to_save: Sequence[str] | None,
    **settings: float,
) -> LoraConfig:
    """Return the configuration of an adapter that any process can load on the base model's checkpoint.

    Args:
        base: The classifier.
        missing_weights: Names of the weights that its checkpoint lacks, which are random: what transformers reports while loading.
        target_modules: Names of the layers that get LoRA, or "all-linear" alone; default: PEFT's choice for the architecture, else query and
            value of the attention, else all linear layers.
        modules_to_save: Names of the modules that train and are saved as a whole; default: those that the checkpoint lacks.
        **settings: Further ones of `LoraConfig`.
    """
    saved = _missing_modules(base, missing_weights) if modules_to_save is None else list(modules_to_save)
    # PEFT saves every module whose name ends with that of a head, DistilBERT's pre_classifier too, and would also give it LoRA.
    saved += [name for name, _ in base.named_modules() if name.endswith(_HEADS) and name not in (*_HEADS, *saved)]
    targets = _default_targets(base) if target_modules is None else list(target_modules)
    return LoraConfig(
        task_type="SEQ_CLS",
        target_modules=_ALL_LINEAR if targets == [_ALL_LINEAR] else targets,
        modules_to_save=[name for name in saved if name not in _HEADS] or None,
        **settings,
    )


def _missing_modules(module: nn.Module, missing: Collection[str], prefix: str = "") -> list[str]:
    """Return the names of the outermost modules that hold nothing but missing weights, or a part of them where they have none inside."""
    found: list[str] = []
    for name, child in module.named_children():
        weights = {f"{prefix}{name}.{weight}" for weight, _ in child.named_parameters()}
        if weights and weights <= set(missing):
            found.append(prefix + name)
        elif weights & set(missing):
            found += _missing_modules(child, missing, f"{prefix}{name}.") or [prefix + name]
    return found


def _default_targets(base: PreTrainedModel) -> list[str]:
    chosen = default_targets(base.config.model_type)
    if chosen is not None:
        return chosen
    names = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    return next((list(each) for each in _ATTENTION if names.issuperset(each)), [_ALL_LINEAR])
