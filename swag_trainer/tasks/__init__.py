"""Tasks: what of a model's inputs and outputs is predicted, one file per task; `task_named`, `task_for` and `task_of` find them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from swag_trainer.errors import SwagError, shortened

if TYPE_CHECKING:
    from swag_trainer.posterior.record import PosteriorRecord
    from swag_trainer.tasks.base import Task

# The modules of the tasks that come with this package; a module's class registers itself when it is imported.
_BUILT_IN = (
    "generation",
    "image_classification",
    "multiple_choice",
    "multiple_choice_encoder",
    "question_answering",
    "sequence_classification",
    "token_classification",
    "zero_shot",
)


def task_named(name: str | None) -> Task:
    """Return the task that a posterior's record names; sequence classification where it names none.

    Raises:
        SwagError: No such task is known.
    """
    tasks = _tasks()
    name = name or "swag-text-classification"
    if name not in tasks:
        raise SwagError(f"The posterior is for the task {shortened(repr(name))}; known tasks: {task_names()}.")
    return tasks[name]


def task_names() -> str:
    """Return the names of the tasks that have a predictor, for a message."""
    return ", ".join(map(repr, sorted(_tasks())))


def task_for(record: PosteriorRecord) -> Task:
    """Return the task of a posterior, with the settings in its record.

    Raises:
        SwagError: No such task is known, or it has no such settings.
    """
    return task_named(record.task).configured(record.task_settings)


def recorded_task(name: str, record: PosteriorRecord) -> Task:
    """Return a task by its name, with the settings in a posterior's record where that is for the same task.

    Raises:
        SwagError: As `task_for`.
    """
    return task_for(record) if record.task == name else task_named(name)


def mark(model: Any, name: str, settings: Mapping[str, Any]) -> None:
    """Note in a base model's config which task it is trained for, and how; `task_of` and `settings_of` read it.

    Args:
        model: A model of transformers, without its adapter.
        name: Name of the task.
        settings: What `Task.configured` takes.
    """
    model.config.swag_task, model.config.swag_task_settings = name, dict(settings)


def settings_of(model: Any) -> dict[str, Any]:
    """Return the settings that `mark` noted; empty where there are none."""
    return dict(getattr(getattr(model, "config", None), "swag_task_settings", None) or {})


def task_of(model: Any) -> str | None:
    """Return the name of the task that a base model was marked for, or else that its head is made for; None where its class does not tell.

    Args:
        model: A model of transformers, without its adapter.
    """
    noted = getattr(getattr(model, "config", None), "swag_task", None)
    if isinstance(noted, str) and noted in _tasks():
        return noted
    return task_of_architecture(type(model).__name__)


def task_of_architecture(name: str) -> str | None:
    """Return the name of the task that the head of a model is made for, by the name of its class; None where that does not tell."""
    return next((task.name for task in _tasks().values() if task.head and name.endswith(task.head)), None)


def task_of_adapter(config: Mapping[str, Any]) -> str | None:
    """Return the name of the task that a saved adapter was trained for; None where its "task_type" is missing or unknown.

    Args:
        config: Contents of adapter_config.json.
    """
    stated = config.get("task_type")
    return next((task.name for task in _tasks().values() if task.peft_task_type and task.peft_task_type == stated), None)


def _tasks() -> dict[str, Task]:
    for module in _BUILT_IN:
        import_module(f"{__name__}.{module}")
    return import_module(f"{__name__}.base").TASKS
