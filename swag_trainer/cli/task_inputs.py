"""What `swag-trainer predict` gives the pipeline of a task, and how its prediction becomes a record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swag_trainer.cli.labelled_images import IMAGE_SUFFIXES
from swag_trainer.cli.prediction_input import STANDARD_INPUT, refuse_paths
from swag_trainer.cli.text_sources import Example
from swag_trainer.errors import SwagError
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.image_classification import ImageClassification
from swag_trainer.tasks.multiple_choice import MultipleChoice
from swag_trainer.tasks.multiple_choice_encoder import MultipleChoiceEncoder
from swag_trainer.tasks.question_answering import QuestionAnswering
from swag_trainer.tasks.questions import ANSWER_KEY, ANSWER_NUMBERS, Question, question_text
from swag_trainer.tasks.token_classification import TokenClassification
from swag_trainer.tasks.zero_shot import ZeroShotClassification

_CHOICES = {MultipleChoice.name, MultipleChoiceEncoder.name}
# Tasks whose input is a whole row of a file: the question and what stands beside it, such as its choices or its context.
_QUESTIONS = {*_CHOICES, QuestionAnswering.name}
# Options that pipelines of some tasks take under the same names.
_PASSED_ON = ("candidate_labels", "hypothesis_template", "multi_label", "aggregation_strategy", "handle_impossible_answer")


def refuse_files(options: Any) -> None:
    """Refuse texts that are paths of files, before anything is loaded; those of images may be inputs, which the task tells.

    Args:
        options: As for `check_inputs`.

    Raises:
        SwagError: A text is such a path.
    """
    if not (options.task or "").endswith("image-classification"):
        refuse_paths(options.model, [text for text in options.texts if Path(text).suffix.lower() not in IMAGE_SUFFIXES])


def check_inputs(task: str, options: Any) -> None:
    """Refuse inputs of another kind than the task's, before a model is loaded.

    Args:
        task: Its name.
        options: Of `swag-trainer predict`, as for `arguments_of`.

    Raises:
        SwagError: A text is the path of a file, an image is not there, or a question comes without its choices.
    """
    texts = [text for text in options.texts if text != STANDARD_INPUT]
    if task == ImageClassification.name:
        missing = next((path for path in texts if not path.startswith("http") and not Path(path).is_file()), None)
        if missing is not None:
            raise SwagError(f"There is no image {missing!r}: {task} takes paths and addresses of images.")
    elif task in _QUESTIONS:
        if options.file is None and options.dataset is None:
            raise SwagError(
                f"{task} takes rows with a question and what stands beside it: those of --file QUESTIONS.jsonl or of --dataset."
            )
    else:
        refuse_paths(options.model, texts)
    if task == ZeroShotClassification.name and not options.candidate_labels:
        raise SwagError(f"{task} needs the labels to choose from: --candidate-labels LABEL LABEL ...")


def arguments_of(task: str, options: Any) -> dict[str, Any]:
    """Return what the pipeline is called with besides the options of `PredictionOptions`; what it does not take, it refuses."""
    given = {name: value for name in _PASSED_ON if (value := getattr(options, name))}
    return given | ({"top_k": 1} if task == ImageClassification.name else {})


def input_of(task: str, example: Example, text_column: str | None) -> Any:
    """Return what the pipeline is given for an example: its text, or for questions all of its row but the answer.

    A row's own question is the question, even where another column, such as "text", is usually the text; unless a column was named.
    """
    if task not in _QUESTIONS:
        return example.text
    others = {name: value for name, value in example.others.items() if name not in (*ANSWER_NUMBERS, ANSWER_KEY)}
    return {**others, "question": example.text if text_column else question_text(others, example.text)}


def checked(example: Example, task: Task, text_column: str | None) -> Example:
    """Return an example, with its problem where it is a multiple-choice question that cannot be answered: the others are."""
    if example.problem is None and task.name in _CHOICES:
        try:
            Question.from_row(input_of(task.name, example, text_column), max_choices=task.num_classes(None))
        except SwagError as error:
            return example._replace(problem=str(error))
    return example


def record_of(task: str, prediction: Any) -> dict[str, Any]:
    """Return a prediction as a record: an object as it is, without the text, which stands in the record; a list under "predictions".

    Tokens or entities are a list under "entities", however many there are.
    """
    if task == TokenClassification.name:
        return {"entities": prediction}
    if isinstance(prediction, list) and len(prediction) == 1 and isinstance(prediction[0], Mapping):
        prediction = prediction[0]
    if isinstance(prediction, Mapping):
        return {name: value for name, value in prediction.items() if name != "sequence"}
    return {"predictions": prediction}
