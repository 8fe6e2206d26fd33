"""Tasks: what of a model's inputs and outputs is predicted, one file per task; `task_named` and `task_of` find them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from swag_trainer.errors import SwagError

if TYPE_CHECKING:
    from swag_trainer.tasks.base import Task

# The modules of the tasks that come with this package; a module's class registers itself when it is imported.
_BUILT_IN = ("sequence_classification",)


def task_named(name: str | None) -> Task:
    """Return the task that a posterior's record names; sequence classification where it names none.

    Raises:
        SwagError: No such task is known.
    """
    tasks = _tasks()
    name = name or "swag-text-classification"
    if name not in tasks:
        raise SwagError(f"The posterior is for the task {name!r}; known tasks: {', '.join(map(repr, sorted(tasks)))}.")
    return tasks[name]


def task_of(model: Any) -> str | None:
    """Return the name of the task that a base model's head is made for; None where its class does not tell.

    Args:
        model: A model of transformers, without its adapter.
    """
    architecture = type(model).__name__
    return next((task.name for task in _tasks().values() if task.head and architecture.endswith(task.head)), None)


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
