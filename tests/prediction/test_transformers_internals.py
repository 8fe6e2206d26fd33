"""The names that `swag_trainer.prediction.transformers_internals` uses are still there."""

import inspect

from transformers import Pipeline, TextClassificationPipeline, Trainer, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS
from transformers.trainer_pt_utils import LengthGroupedSampler

import swag_trainer.prediction.pipelines.text_classification  # noqa: F401 - registers the task


def test_the_names_are_those_of_this_release():
    # Red for: a release of transformers that renames one; an override of a name that nothing calls does nothing, in silence.
    assert TextClassificationPipeline._load_tokenizer is True
    assert '"_load_tokenizer"' in inspect.getsource(inspect.unwrap(pipeline))
    assert list(inspect.signature(Trainer._get_eval_sampler).parameters) == ["self", "eval_dataset"]
    assert "sampler_fn=self._get_eval_sampler" in inspect.getsource(Trainer.get_eval_dataloader)
    assert "lengths" in inspect.signature(LengthGroupedSampler).parameters
    for name in ("_sanitize_parameters", "preprocess", "_forward", "postprocess"):
        assert callable(getattr(Pipeline, name))


def test_the_task_is_known_to_the_registry_with_the_classes_of_peft_that_it_takes():
    # Red for: a registry that takes the task and a list of PEFT's classes that nothing looks at.
    assert "swag-text-classification" in PIPELINE_REGISTRY.supported_tasks
    assert SUPPORTED_PEFT_TASKS["swag-text-classification"] == ["PeftModelForSequenceClassification", "PeftModel"]
    assert "PeftModelForSequenceClassification" in SUPPORTED_PEFT_TASKS["text-classification"]
