"""The names that `swag_trainer.prediction.transformers_internals` uses are still there."""

import inspect

from transformers import GenerationMixin, Pipeline, TextClassificationPipeline, Trainer, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS
from transformers.trainer_pt_utils import LengthGroupedSampler

from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline


def test_the_names_are_those_of_this_release():
    # Red for: a release of transformers that renames one; an override of a name that nothing calls does nothing, in silence.
    assert TextClassificationPipeline._load_tokenizer is True
    assert '"_load_tokenizer"' in inspect.getsource(inspect.unwrap(pipeline))
    source = inspect.getsource(inspect.unwrap(pipeline))
    assert "maybe_adapter_path = find_adapter_config_file(" in source and "_from_pipeline=task, " in source
    assert "task" in inspect.signature(pipeline).parameters
    for part in ("processor", "image_processor", "video_processor", "feature_extractor"):
        assert getattr(Pipeline, f"_load_{part}") is None
        assert getattr(SwagTextClassificationPipeline, f"_load_{part}") is False
    assert list(inspect.signature(Trainer._get_eval_sampler).parameters) == ["self", "eval_dataset"]
    assert "sampler_fn=self._get_eval_sampler" in inspect.getsource(Trainer.get_eval_dataloader)
    assert "lengths" in inspect.signature(LengthGroupedSampler).parameters
    assert "self._get_stopping_criteria(" in inspect.getsource(GenerationMixin.generate)
    for name in ("_sanitize_parameters", "preprocess", "_forward", "postprocess"):
        assert callable(getattr(Pipeline, name))


def test_the_task_is_known_to_the_registry_with_the_classes_of_peft_that_it_takes():
    # Red for: a registry that takes the task and a list of PEFT's classes that nothing looks at.
    assert "swag-text-classification" in PIPELINE_REGISTRY.supported_tasks
    assert SUPPORTED_PEFT_TASKS["swag-text-classification"] == ["PeftModelForSequenceClassification", "PeftModel"]
    assert "PeftModelForSequenceClassification" in SUPPORTED_PEFT_TASKS["text-classification"]
