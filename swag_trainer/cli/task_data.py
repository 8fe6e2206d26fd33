"""Which reader the examples of a task have: questions, contexts, tagged words, pairs or images. Labelled texts are read by `swag_trainer.cli.text_data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swag_trainer.cli.classifier import load_pipeline
from swag_trainer.cli.contexts import Contexts
from swag_trainer.cli.encoded import EncodedTask
from swag_trainer.cli.labelled_images import LabelledImages
from swag_trainer.cli.questions import Questions
from swag_trainer.cli.tagged_text import TaggedText
from swag_trainer.cli.text_pairs import TextPairs
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.generation import TextGeneration, refuse_classes
from swag_trainer.tasks.image_classification import ImageClassification
from swag_trainer.tasks.multiple_choice import MultipleChoice
from swag_trainer.tasks.multiple_choice_encoder import MultipleChoiceEncoder
from swag_trainer.tasks.question_answering import QuestionAnswering
from swag_trainer.tasks.token_classification import TokenClassification
from swag_trainer.tasks.zero_shot import ZeroShotClassification

_READERS: Mapping[str, type[EncodedTask]] = {
    MultipleChoice.name: Questions,
    MultipleChoiceEncoder.name: Questions,
    TokenClassification.name: TaggedText,
    QuestionAnswering.name: Contexts,
    ZeroShotClassification.name: TextPairs,
    ImageClassification.name: LabelledImages,
}


def load_task_data(options: Any, posterior: WeightPosterior, task: Task) -> EncodedTask | None:
    """Load the model of a posterior, and return what reads the examples of its task; None for tasks whose examples are labelled texts.

    Args:
        options: Of the command, with the data set, the model and the device.
        posterior: The posterior.
        task: What it is for.

    Raises:
        SwagError: The model cannot be loaded, or the task has no classes.
    """
    if task.name == TextGeneration.name:
        refuse_classes()
    reader = _READERS.get(task.name)
    return None if reader is None else reader(options, load_pipeline(options, posterior, task, device=options.device))
