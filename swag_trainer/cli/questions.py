"""Multiple-choice questions of a file or of the Hub, encoded for the model that answers them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_data import read_any_text
from swag_trainer.errors import SwagError
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.multiple_choice import MultipleChoice
from swag_trainer.tasks.multiple_choice_encoder import MultipleChoiceEncoder


@dataclass(frozen=True, eq=False)
class EncodedQuestions:
    """The questions of one split.

    Attributes:
        name: What the data is called; no path.
        split: Which part of it.
        texts: The questions, without their choices.
        rows: Questions with their choices as the Trainer takes them.
        revision: Commit of a data set on the Hub; not known.
    """

    name: str
    split: str
    texts: list[str]
    rows: list[dict[str, Any]]
    revision: None = None


def is_multiple_choice(task: Task) -> bool:
    """Return whether the examples of a task are questions with choices."""
    return isinstance(task, (MultipleChoice, MultipleChoiceEncoder))


def read_questions(
    options: TextOptions, source: str, split: str, classifier: Any, *, needs_answers: bool = True
) -> EncodedQuestions:
    """Read the questions of a split: rows of {"question": ..., "choices": [...], "answer": ...}, or as the pipeline takes them.

    Args:
        options: With the names of the data set and of its column of questions.
        source: The data set.
        split: Which part of it.
        classifier: The pipeline of the task, which encodes them.
        needs_answers: Refuse a question without a right choice.

    Raises:
        SwagError: The data cannot be read, has no such split, or has a question that cannot be used.
    """
    examples = read_any_text(source, split, options.text_column)
    unusable = next((example for example in examples if example.problem is not None), None)
    if unusable is not None:
        raise SwagError(f"The example in {unusable.where} cannot be used: {unusable.problem}")
    rows = [classifier.example({**example.others, "question": example.text}) for example in examples]
    for example, row in zip(examples, rows, strict=True):
        if needs_answers and "labels" not in row:
            raise SwagError(f'The question in {example.where} has no right choice: "answer" names its place, from 0.')
    path, own = Path(source), options.dataset_name if source == options.dataset else None
    return EncodedQuestions(
        own or (path.name if path.exists() else source), split, [example.text for example in examples], rows
    )
