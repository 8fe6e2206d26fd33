"""Makes transformers know our tasks, without importing its pipelines before somebody wants one."""

from __future__ import annotations

from types import ModuleType

import wrapt

TEXT_CLASSIFICATION_TASK = "swag-text-classification"


def register_tasks() -> None:
    """Register the tasks now, or as soon as ``transformers.pipelines`` is imported: that alone takes a second."""
    wrapt.register_post_import_hook(_register, "transformers.pipelines")


def _register(pipelines: ModuleType) -> None:
    from transformers.pipelines.base import SUPPORTED_PEFT_TASKS

    from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification
    from swag_trainer.prediction.pipeline import SwagTextClassificationPipeline

    if TEXT_CLASSIFICATION_TASK in pipelines.PIPELINE_REGISTRY.supported_tasks:
        return
    pipelines.PIPELINE_REGISTRY.register_pipeline(
        TEXT_CLASSIFICATION_TASK,
        pipeline_class=SwagTextClassificationPipeline,
        pt_model=AutoSwagModelForSequenceClassification,
        type="text",
    )
    SUPPORTED_PEFT_TASKS[TEXT_CLASSIFICATION_TASK] = ["PeftModelForSequenceClassification", "PeftModel"]
