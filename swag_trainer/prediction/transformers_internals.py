"""What this package uses of transformers beyond its documented interface: tests/prediction/test_transformers_internals.py checks each name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler, SequentialSampler
from transformers import AutoConfig, PretrainedConfig

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


_TASKS: set[str] = set()


class LoadsNoTokenizer:
    """Keeps `transformers.pipeline` from loading the base model's tokenizer for a pipeline."""

    _load_tokenizer = False


class EvaluatesInOrder(_Trainer):
    """Lets a Trainer evaluate in the order of the data set, also with ``train_sampling_strategy="group_by_length"``."""

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        from transformers.trainer_pt_utils import LengthGroupedSampler  # here, as importing the Trainer takes a second

        sampler = super()._get_eval_sampler(eval_dataset)
        return SequentialSampler(eval_dataset) if isinstance(sampler, LengthGroupedSampler) else sampler


class PipelineConfig(AutoConfig):
    """Keeps `transformers.pipeline` from reading a config.json for the tasks of this package: their loader reads the base model's.

    transformers would read the one beside the adapter, which may name code to run, or that of the base model where the adapter names it,
    also where ``base_model=`` names another place.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an empty configuration for a task of this package, else what transformers returns."""
        if kwargs.get("_from_pipeline") in _TASKS:
            return PretrainedConfig()
        return AutoConfig.from_pretrained(*args, **kwargs)


def register_pipeline(pipeline_class: Any, loader: type, *, peft_classes: Sequence[str] = ("PeftModel",)) -> None:
    """Register a pipeline for texts under the name of its task, for ``transformers.pipeline(name, model=...)``.

    Args:
        pipeline_class: A subclass of `PosteriorPipeline`; ``swag_task`` is the name.
        loader: A subclass of `AutoSwagModel`.
        peft_classes: Names of PEFT's classes that the pipeline takes, where the pipeline of transformers below it checks them.
    """
    from transformers import pipelines
    from transformers.pipelines import PIPELINE_REGISTRY
    from transformers.pipelines.base import SUPPORTED_PEFT_TASKS

    name = pipeline_class.swag_task
    _TASKS.add(name)
    pipelines.AutoConfig = PipelineConfig
    if name not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(name, pipeline_class=pipeline_class, pt_model=loader, type="text")
        SUPPORTED_PEFT_TASKS[name] = list(peft_classes)
