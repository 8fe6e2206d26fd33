"""What can be done with the posterior of a model whose task has no pipeline or no predictor here, read off the class of the model."""

from __future__ import annotations

from typing import Any

from swag_trainer.errors import SwagError
from swag_trainer.tasks import task_names, task_of
from swag_trainer.tasks.generation import TextGeneration, refuse_classes

# What class names of transformers end in, and what they are for. The predictor reads one row of logits for each example: it would take
# the start positions of an answer for classes.
_NO_PREDICTOR = (
    ("ForMaskedLM", "masked language modelling"),
    ("ForNextSentencePrediction", "next-sentence prediction"),
    ("ForPreTraining", "pre-training"),
    ("ForConditionalGeneration", "text generation"),
    ("ForSpeechSeq2Seq", "speech recognition"),
    ("ForCTC", "speech recognition"),
    ("ForSemanticSegmentation", "segmentation"),
    ("ForImageSegmentation", "segmentation"),
    ("ForObjectDetection", "object detection"),
    ("ForDepthEstimation", "depth estimation"),
    ("Model", "embeddings"),
)
_NO_PIPELINE = (
    ("ForAudioClassification", "audio classification"),
    ("ForVideoClassification", "video classification"),
)
BY_HAND = (
    "weights = posterior.sample(10, seed=0); then, for each draw i, peft.set_peft_model_state_dict(model, {key: draws[i] for key, draws in "
    "weights.items()}), the model's own predictions, and their average"
)


def limits_of(model: Any) -> str | None:
    """Return what the posterior of a base model can be used for, in whole sentences; None where the task has predictor and pipeline.

    Args:
        model: A model of transformers, without its adapter.
    """
    if task_of(model) is not None:
        return None
    purpose = _purpose(model, _NO_PREDICTOR)
    if purpose is not None:
        return (
            f"{type(model).__name__} is for {purpose}, which has no predictor and no pipeline in swag_trainer (those are {task_names()}). The "
            f"posterior is collected and saved, and plain PEFT loads its mean. Average predictions by hand: {BY_HAND}."
        )
    purpose = _purpose(model, _NO_PIPELINE)
    if purpose is not None:
        return (
            f"{type(model).__name__} is for {purpose}, which has no pipeline in swag_trainer (those are {task_names()}). The posterior is "
            "collected, saved, tuned and measured, and MonteCarloPredictor(model, posterior) averages predictions of batches and data sets."
        )
    return None


def refuse_without_predictor(model: Any) -> None:
    """Refuse to predict with a base model whose class says that it does not give one row of logits for each example.

    Raises:
        SwagError: It is such a model; the message says how to average its predictions by hand, or what else there is.
    """
    if task_of(model) == TextGeneration.name:
        refuse_classes()
    purpose = None if task_of(model) is not None else _purpose(model, _NO_PREDICTOR)
    if purpose is not None:
        raise SwagError(
            f"{type(model).__name__} is for {purpose}, and MonteCarloPredictor predicts {task_names()}, and other classifiers with one row of "
            f"logits for each example. Average its predictions by hand: {BY_HAND}. Or write a class that inherits from "
            "swag_trainer.tasks.base.Task, and pass MonteCarloPredictor(task=...)."
        )


def _purpose(model: Any, purposes: tuple[tuple[str, str], ...]) -> str | None:
    name = type(model).__name__
    return next((purpose for ending, purpose in purposes if name.endswith(ending)), None)
