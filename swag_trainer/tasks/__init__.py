"""Tasks: what of a model's inputs and outputs is predicted, one file per task; and `task_named`, which finds them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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
    for module in _BUILT_IN:
        import_module(f"{__name__}.{module}")
    tasks = import_module(f"{__name__}.base").TASKS
    name = name or "swag-text-classification"
    if name not in tasks:
        raise SwagError(f"The posterior is for the task {name!r}; known tasks: {', '.join(map(repr, sorted(tasks)))}.")
    return tasks[name]
