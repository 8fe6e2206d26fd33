"""Metadata of the trained model that travels with its posterior: base model, task, labels and problem type."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from peft import PeftModel

from swag_trainer.adapters.base_checkpoint import find_other_shapes
from swag_trainer.adapters.gguf import gguf_file
from swag_trainer.adapters.initialisation import base_changing_initialisation, base_fingerprint
from swag_trainer.adapters.keys import base_model
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.base_loading import find_unsaved_modules, names_for_modules_to_save
from swag_trainer.errors import SwagError
from swag_trainer.tasks import settings_of, task_of
from swag_trainer.version import __version__

# Names of models without classes of their own end in these; the labels in their configs are placeholders.
_WITHOUT_LABELS = ("ForCausalLM", "LMHeadModel", "ForMultipleChoice", "ForQuestionAnswering")


def check_saved_modules(weights: AdapterWeights) -> None:
    """Refuse a model of which a part would be random after loading.

    Raises:
        SwagError: A module is in neither the base model's checkpoint nor the adapter's file, or has another shape there.
    """
    unsaved = find_unsaved_modules(weights.model, weights.adapter_name)
    if unsaved:
        names = names_for_modules_to_save(weights.model, weights.adapter_name, unsaved)
        raise SwagError(
            f"The module {unsaved[0]!r} is in neither the base model's checkpoint nor the adapter's file, so it is random at every "
            f"load and no saved adapter gives this model's predictions. Train and save it: LoraConfig(modules_to_save={names!r})."
        )
    for weight in find_other_shapes(weights.model, weights.adapter_name) or []:
        if weight.is_embedding and isinstance(weights.model, PeftModel) and not weights.is_sharded:
            continue  # PEFT saves embeddings that were resized
        module = weight.name.split(".")[-2]
        raise SwagError(
            f"{weight.name!r} has the shape {list(weight.here)}, and {list(weight.stored)} in the base model's checkpoint; it is not in the "
            "adapter's file, so it is random at every load and no saved adapter gives this model's predictions. Train and save it: "
            f'LoraConfig(task_type="SEQ_CLS") does so with a classifier\'s head, modules_to_save={[module]!r} with any module.'
        )


def library_versions() -> dict[str, str]:
    """Return the versions of what makes a posterior, by name, for its record."""
    return {"swag_trainer": __version__} | {name: version(name) for name in ("transformers", "peft", "torch")}


def base_metadata(weights: AdapterWeights) -> dict[str, Any]:
    """Return the fields of a `PosteriorRecord` about the base model."""
    initialisation = base_changing_initialisation(weights.model.peft_config[weights.adapter_name])
    # Where the base is cut up over processes too, no process has a whole weight of it to measure.
    measured = initialisation is not None and not weights.is_sharded
    config = getattr(base_model(weights.model), "config", None)
    return {
        "base_revision": getattr(config, "_commit_hash", None),
        "gguf_file": gguf_file(config),
        "initialisation": initialisation,
        "base_fingerprint": base_fingerprint(weights.model, weights.adapter_name) if measured else {},
    }


def task_metadata(weights: AdapterWeights, *, problem_type: str | None) -> dict[str, Any]:
    """Return the fields of a `PosteriorRecord` about what is predicted.

    Args:
        weights: Of the model. Call this late: a model writes its problem type into its configuration at the first step.
        problem_type: What to state where the configuration has none yet.
    """
    model = base_model(weights.model)
    config = getattr(model, "config", None)
    id2label = getattr(config, "id2label", None) or {}
    has_labels = not type(model).__name__.endswith(_WITHOUT_LABELS)
    return {
        "task": task_of(model),
        "task_settings": settings_of(model),
        "labels": [str(id2label[index]) for index in sorted(id2label)] or None if has_labels else None,
        "problem_type": getattr(config, "problem_type", None) or problem_type,
        "pad_token_id": getattr(config, "pad_token_id", None),
    }
