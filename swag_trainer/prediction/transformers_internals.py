"""What this package uses of transformers beyond its documented interface: tests/prediction/test_transformers_internals.py checks each name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler, SequentialSampler
from transformers import AutoConfig, PretrainedConfig
from transformers import utils as transformers_utils

from swag_trainer.errors import SwagError

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


_TASKS: set[str] = set()


class LoadsNoTokenizer:
    """Keeps `transformers.pipeline` from loading a tokenizer, or a processor with code of its own, for a pipeline."""

    _load_tokenizer = False
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False


def replace_stopping_criteria(model: Any, replacement: Callable[[Any], Any]) -> None:
    """Let ``model.generate`` stop by what a function makes of the criteria that it has put together, those of its arguments among them."""
    own = model._get_stopping_criteria
    model._get_stopping_criteria = lambda *args, **kwargs: replacement(own(*args, **kwargs))


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
        """Return an empty configuration for a task of this package, else what transformers returns.

        Raises:
            SwagError: ``trust_remote_code=True`` for a task of this package.
        """
        if kwargs.get("_from_pipeline") in _TASKS:
            refuse_remote_code(
                args[0] if args else kwargs.get("pretrained_model_name_or_path"), kwargs.get("trust_remote_code")
            )
            return PretrainedConfig()
        return AutoConfig.from_pretrained(*args, **kwargs)


def refuse_remote_code(name: object, trust_remote_code: bool | None) -> None:
    """Refuse ``trust_remote_code=True``.

    Raises:
        SwagError: It is true.
    """
    if trust_remote_code:
        raise SwagError(
            f"trust_remote_code=True would let {str(name)!r} choose whose code runs, and is refused: an adapter names its own base model and "
            "tokenizer. Leave it out."
        )


def find_adapter_config_file(*args: Any, **kwargs: Any) -> str | None:
    """Find adapter_config.json as transformers does, but for the tasks of this package none: their loader reads it, with limits.

    `transformers.pipeline` would read it before it asks for a configuration, whatever its size, and follow the base model that it names.
    The function is not given the task, which only its caller knows.
    """
    caller = sys._getframe(1)
    if caller.f_globals.get("__name__") == "transformers.pipelines" and caller.f_locals.get("task") in _TASKS:
        return None
    return transformers_utils.find_adapter_config_file(*args, **kwargs)


def register_pipeline(
    pipeline_class: Any, loader: type, *, peft_classes: Sequence[str] = ("PeftModel",), inputs: str = "text"
) -> None:
    """Register a pipeline under the name of its task, for ``transformers.pipeline(name, model=...)``.

    Args:
        pipeline_class: A subclass of `PosteriorPipeline`; ``swag_task`` is the name.
        loader: A subclass of `AutoSwagModel`.
        peft_classes: Names of PEFT's classes that the pipeline takes, where the pipeline of transformers below it checks them.
        inputs: What it takes, in transformers' words: "text" or "image".
    """
    from transformers import pipelines
    from transformers.pipelines import PIPELINE_REGISTRY
    from transformers.pipelines.base import SUPPORTED_PEFT_TASKS

    name = pipeline_class.swag_task
    _TASKS.add(name)
    pipelines.AutoConfig = PipelineConfig
    pipelines.find_adapter_config_file = find_adapter_config_file
    if name not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(name, pipeline_class=pipeline_class, pt_model=loader, type=inputs)
        SUPPORTED_PEFT_TASKS[name] = list(peft_classes)
