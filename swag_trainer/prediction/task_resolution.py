"""Which task a posterior is loaded for: the one that is asked for, else the one that its files tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swag_trainer.errors import SwagError, shortened
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.base_config import load_base_config
from swag_trainer.prediction.loading import LOADING_FAILURES, base_of
from swag_trainer.tasks import task_named, task_names, task_of_adapter, task_of_architecture
from swag_trainer.tasks.base import Task

_PREFIX = "swag-"


def resolve_task(
    posterior: WeightPosterior, *, given: str | None, name: str, base_model: str | Path | None = None, **hub: Any
) -> Task:
    """Return the task that a posterior is loaded for.

    It is the one that is asked for, else the one in the posterior's record, else that of the adapter's "task_type" (CAUSAL_LM is
    generation), else that of the architecture in the base model's config.json.

    Args:
        posterior: The posterior.
        given: Name of the task, with or without "swag-" in front; None where it is to be found.
        name: Where the posterior lies, for messages.
        base_model: Where the base model lies, if elsewhere than the adapter says.
        hub: ``token``, ``cache_dir``, ``local_files_only`` for the base model's repository.

    Raises:
        SwagError: There is no such task, or nothing tells which one it is.
    """
    if given is not None:
        return task_named(given if given.startswith(_PREFIX) else f"{_PREFIX}{given}")
    found = posterior.record.task or task_of_adapter(posterior.adapter.config)
    if found is None:
        found = _task_of_base(posterior, base_model, name, hub)
    if found is None:
        stated = shortened(repr(posterior.adapter.config.get("task_type")))
        raise SwagError(
            f"What is the posterior in {name!r} to be used for? Its record names no task, adapter_config.json has task_type={stated}, and "
            f"the base model's config.json names no head of one. Say it: --task on the command line, one of {task_names()}."
        )
    return task_named(found)


def _task_of_base(posterior: WeightPosterior, base_model: str | Path | None, name: str, hub: Mapping[str, Any]) -> str | None:
    source, revision = base_of(posterior, base_model, name)
    try:
        config = load_base_config(source, revision=revision, **hub)
    except LOADING_FAILURES as error:
        raise SwagError(
            f"The base model {source!r} cannot be asked what it is for: {type(error).__name__}: {str(error)[:300]} Say it: --task on the "
            f"command line, one of {task_names()}."
        ) from error
    stated = config.architectures if isinstance(config.architectures, list) else []
    return next(filter(None, (task_of_architecture(each) for each in stated if isinstance(each, str))), None)
