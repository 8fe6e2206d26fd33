"""The pipeline "swag-multiple-choice": a question with its choices in, averaged probabilities of the choices and their uncertainty out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch

from swag_trainer.adapters.positions import longest_input
from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import PredictionOptions, decide
from swag_trainer.prediction.loading import AutoSwagModelForMultipleChoice
from swag_trainer.prediction.pipelines.base import PosteriorPipeline, check_top_k
from swag_trainer.prediction.tokenizers import encoding_errors
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.multiple_choice import MultipleChoice
from swag_trainer.tasks.questions import LETTERS, ChoiceSettings, QuestionEncoder

logger = logging.getLogger(__name__)


class SwagMultipleChoicePipeline(PosteriorPipeline):
    """Answers multiple-choice questions with the predictions of S weight draws of a causal language model averaged.

        from transformers import pipeline
        import swag_trainer

        choose = pipeline("swag-multiple-choice", model="me/llama-arc-swag", num_samples=10, seed=0)
        choose({"question": "What do plants take from the air?", "choices": ["Carbon dioxide", "Gold", "Sand"]})
        # {'label': 'A', 'choice': 'Carbon dioxide', 'score': 0.94, 'entropy': 0.23, 'mutual_information': 0.02}

    A question is a mapping as `Question.from_row` reads it; a list, a data set or a generator of them is answered one by one. How it is put to
    the model and scored stands in the posterior's record where `MultipleChoiceMixin` trained the model; arguments here replace that.

    An unreliable prediction is withheld, and sets of choices are given, as in `SwagTextClassificationPipeline`; a set has choices of the
    question only.

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, of any kind, for a model that has none attached.
        tokenizer: As in `PosteriorPipeline`.
        scoring, prompt, chat, inverse_temperature, max_choices: Fields of `ChoiceSettings`; for the constructor only.
        top_k: How many choices to return, the likeliest first: 1 for one prediction, None for a list of all. Also in a call.
        **kwargs: Options of `PredictionOptions`, in the constructor or in a call, and arguments of `transformers.Pipeline`.

    Attributes:
        posterior, options, num_truncated: See `PosteriorPipeline`.
        settings: How questions are put and scored.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range; the model is no causal language model; a letter is not one token.
    """

    swag_task = MultipleChoice.name
    own_arguments = ("top_k",)
    other_tasks = ("swag-text-generation",)

    def __init__(self, model: Any, *, posterior: WeightPosterior | None = None, tokenizer: Any = None, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in ChoiceSettings.names() if name in kwargs}
        super().__init__(model=model, posterior=posterior, tokenizer=tokenizer, **kwargs)
        record = self.posterior.record
        recorded = record.task_settings if record.task == self.swag_task else {}
        if "scoring" in own and own["scoring"] != recorded.get("scoring"):
            recorded = {}  # a prompt for letters is none for answers
        settings = ChoiceSettings.from_record({**recorded, **own})
        if self.tokenizer.pad_token_id is None:  # padding is taken off again, so any token will do
            self.tokenizer = copy.deepcopy(self.tokenizer)
            self.tokenizer.pad_token_id = self.tokenizer.eos_token_id or 0
        MultipleChoice(settings).for_model(self.model)  # refuses now what it would refuse with the first question
        self._encoder = QuestionEncoder(self.tokenizer, settings, max_length=longest_input(self.tokenizer, self.model))
        self.settings = self._encoder.settings

    def prompt(self, question: Mapping[str, Any]) -> str:
        """Return the text that the model is given for a question, before its answer."""
        return self._encoder.prompt(question)

    def predicted_task(self) -> Task:
        """Return the task with this pipeline's settings."""
        return MultipleChoice(self.settings)

    def own_parameters(self, top_k: int | None = 1, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide arguments among preprocessing, forward and postprocessing; the tokenizer's are refused."""
        if arguments:
            raise SwagError(
                f"The prompt is tokenised whole, so there is no argument {next(iter(arguments))!r} of the tokenizer."
            )
        check_top_k(top_k)
        return {}, {}, {"top_k": top_k}

    def preprocess(self, inputs: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        """Make model inputs of a question. A prompt that the model cannot take loses tokens at its beginning."""
        if not isinstance(inputs, Mapping):
            raise SwagError(
                f'{self.swag_task} takes questions {{"question": ..., "choices": [...]}}, got {type(inputs).__name__}.'
            )
        with self._tokenizer_lock, encoding_errors():
            encoded = self._encoder(inputs)
        if self._encoder.num_truncated > self.num_truncated:
            if self.num_truncated == 0:
                logger.warning(
                    "A prompt is too long for the model and was truncated; the pipeline's num_truncated counts them."
                )
            self.num_truncated = self._encoder.num_truncated
        tensors = {name: torch.tensor([value]) for name, value in encoded.items() if name != "labels"}
        choices = inputs["choices"]
        return {**tensors, "choices": [list(choices["text"] if isinstance(choices, Mapping) else choices)]}

    def _forward(self, model_inputs: Mapping[str, Any], options: PredictionOptions, link: Any = None) -> dict[str, Any]:
        inputs = {name: value for name, value in model_inputs.items() if name != "choices"}
        return {**super()._forward(inputs, options, link), "choices": model_inputs["choices"]}

    def postprocess(
        self,
        model_outputs: Mapping[str, Any],
        options: PredictionOptions = PredictionOptions(),  # noqa: B008 - frozen
        top_k: int | None = 1,
    ) -> Any:
        """Put the prediction of one question into its form, and decide upon it."""
        predictive: Any = self.predictive_of(model_outputs)
        choices = model_outputs["choices"]
        while not isinstance(choices[0], str):  # a batch of one
            choices = choices[0]
        scores = predictive.probabilities[0, : len(choices)]
        uncertainty = {"entropy": float(predictive.entropy[0]), "mutual_information": float(predictive.mutual_information[0])}
        ranking = [
            {"label": LETTERS[place], "choice": choices[place], "score": float(scores[place]), **uncertainty}
            for place in (-scores).argsort(kind="stable").tolist()
        ][:top_k]
        if decision := decide(options, self.posterior):
            ranking = decision.apply(ranking, scores, dict(enumerate(LETTERS)))
        return ranking[0] if top_k == 1 else ranking


register_pipeline(
    SwagMultipleChoicePipeline, AutoSwagModelForMultipleChoice, peft_classes=("PeftModelForCausalLM", "PeftModel")
)
