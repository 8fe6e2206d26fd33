"""Registration of the pipeline tasks with transformers, without importing its pipelines early."""

from __future__ import annotations

import importlib
from types import ModuleType

import wrapt

_PIPELINES = (
    "text_classification",
    "multiple_choice",
    "image_classification",
    "zero_shot_classification",
    "multiple_choice_encoder",
    "text_generation",
    "token_classification",
    "question_answering",
)


def register_tasks() -> None:
    """Register the tasks now, or as soon as ``transformers.pipelines`` is imported: that alone takes a second."""
    wrapt.register_post_import_hook(_import_pipelines, "transformers.pipelines")


def _import_pipelines(_: ModuleType) -> None:
    # Each pipeline's module registers its task at its end. Naming the class here instead would fail whenever that module is
    # itself what imports transformers.pipelines.
    for name in _PIPELINES:
        importlib.import_module(f"swag_trainer.prediction.pipelines.{name}")
