"""A posterior with its task and model, loaded for the task's pipeline, and texts tokenised for a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import pipeline

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.options import ClassifierOptions
from swag_trainer.errors import SwagError
from swag_trainer.posterior import load_posterior
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.lengths import count_truncated
from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline
from swag_trainer.prediction.task_resolution import resolve_task
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.sequence_classification import SequenceClassification


def find_task(options: ClassifierOptions, posterior: WeightPosterior | None = None) -> tuple[WeightPosterior, Task]:
    """Return the posterior of a folder or a repository, which is read unless it is given, and the task to load it for.

    Raises:
        SwagError: No posterior there, or nothing tells the task.
    """
    if posterior is None:
        posterior = load_posterior(
            options.model, revision=options.revision, ignore_mismatched_adapter=options.ignore_mismatched_adapter
        )
    task = resolve_task(posterior, given=options.task, name=options.model, base_model=options.base_model)
    return posterior, task


def load_pipeline(
    options: ClassifierOptions, posterior: WeightPosterior, task: Task, *, device: str | None = None, **arguments: Any
) -> Any:
    """Load the model of a posterior for the pipeline of a task.

    The pipeline is given the model, not its name: where something is missing, transformers would look for a config.json first, and name
    that in its error.

    Args:
        options: Where adapter and base model lie.
        posterior: The posterior that lies there.
        task: What `find_task` found.
        device: Such as "cpu" or "cuda:0"; None for what transformers chooses.
        **arguments: Of the pipeline.

    Raises:
        SwagError: The posterior does not fit the model or the task, or the task has no pipeline.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    if task.name not in PIPELINE_REGISTRY.supported_tasks:
        raise SwagError(f"The task {task.name!r} has no pipeline: use MonteCarloPredictor(model, posterior) in Python.")
    loader = PIPELINE_REGISTRY.supported_tasks[task.name]["pt"][0]
    loaded = loader.from_pretrained(
        options.model,
        posterior=posterior,
        base_model=options.base_model,
        revision=options.revision,
        ignore_mismatched_adapter=options.ignore_mismatched_adapter,
        dtype="auto",
    )
    return pipeline(task.name, model=loaded, device=device, **arguments)


def load_classifier(
    options: ClassifierOptions, *, posterior: WeightPosterior | None = None, device: str | None = None, **arguments: Any
) -> SwagTextClassificationPipeline:
    """Load a classifier of texts for the commands that read labelled text; arguments as for `load_pipeline`.

    Raises:
        SwagError: As `find_task` and `load_pipeline`, or the posterior is for another task.
    """
    posterior, task = find_task(options, posterior)
    if task.name != SequenceClassification.name:
        raise SwagError(
            f"This command is for classifiers of texts, and {options.model!r} is for {task.name!r}. swag-trainer predict predicts with it. In "
            "Python swag_trainer.tune tunes it, and swag_trainer.evaluation.methods.predict_methods predicts what measure() measures, with "
            "examples as the Trainer takes them."
        )
    return load_pipeline(options, posterior, task, device=device, **arguments)


def class_names(config: Any) -> list[str]:
    """Return the names of the classes of a model's config, in the order of the logits."""
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def tokenised(tokenizer: Any, model: nn.Module, texts: Sequence[str], labels: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Return examples as the Trainer and the predictor take them, truncated at what tokenizer and model can take.

    Warns:
        UserWarning: How many texts were truncated.
    """
    limit = longest_input(tokenizer, model)
    encoded = tokenizer(list(texts), truncation=limit is not None, max_length=limit)
    warn_of_truncated(count_truncated(encoded), of=len(texts), limit=limit)
    columns = dict(encoded)
    if labels is not None:
        columns["labels"] = labels.tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def warn_of_truncated(num_truncated: int, *, of: int, limit: int | None) -> None:
    """Warn of texts that lose tokens at their end, if there are some.

    Args:
        num_truncated: How many there are.
        of: How many texts were tokenised.
        limit: Most tokens that the model takes.

    Warns:
        UserWarning: Some are truncated.
    """
    if num_truncated:
        warnings.warn(f"{num_truncated} of {of} texts have more than {limit} tokens and are truncated.", stacklevel=3)
