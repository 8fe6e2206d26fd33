"""The pipeline "swag-multiple-choice": a question with its choices in, averaged probabilities of the choices and their uncertainty out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from transformers import default_data_collator

from swag_trainer.adapters.positions import longest_input
from swag_trainer.errors import shortened
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import check_options
from swag_trainer.prediction.loading import AutoSwagModelForMultipleChoice
from swag_trainer.prediction.pipelines.choices import ChoicePipeline
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.choice_settings import ChoiceSettings
from swag_trainer.tasks.multiple_choice import MultipleChoice
from swag_trainer.tasks.question_encoder import QuestionEncoder


class SwagMultipleChoicePipeline(ChoicePipeline):
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
        scoring, prompt, chat, inverse_temperature, max_choices: Fields of `ChoiceSettings`; for the constructor only. Where questions are put or
            scored in another way than a tuned posterior was tuned for, it predicts as if it had not been tuned, and warns.
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
    other_tasks = ("swag-text-generation",)

    def __init__(self, model: Any, *, posterior: WeightPosterior | None = None, tokenizer: Any = None, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in ChoiceSettings.names() if name in kwargs}
        super().__init__(model=model, posterior=posterior, tokenizer=tokenizer, **kwargs)
        record = self.posterior.record
        recorded = ChoiceSettings.from_record(record.task_settings if record.task == self.swag_task else {})
        settings = recorded.changed(own)
        self._leave_out_tuning(recorded, own)
        if self.tokenizer.pad_token_id is None:  # padding is taken off again, so any token will do
            self.tokenizer = copy.deepcopy(self.tokenizer)
            self.tokenizer.pad_token_id = self.tokenizer.eos_token_id or 0
        MultipleChoice(settings).for_model(self.model)  # refuses now what it would refuse with the first question
        self._encoder = QuestionEncoder(self.tokenizer, settings, max_length=longest_input(self.tokenizer, self.model))
        self.settings = self._encoder.settings
        self.data_collator = default_data_collator

    def _leave_out_tuning(self, recorded: ChoiceSettings, own: Mapping[str, Any]) -> None:
        """Predict without what was tuned, if that was for questions that are put or scored in another way."""
        changed = [name for name in own if name != "max_choices" and own[name] not in (None, getattr(recorded, name))]
        if self.posterior.tuning is None or not changed:
            return
        warnings.warn(
            f"The posterior was tuned with {changed[0]}={shortened(repr(getattr(recorded, changed[0])))}, and {changed[0]}="
            f"{shortened(repr(own[changed[0]]))} gives scores that mean something else: its temperature, thresholds and prediction sets are left "
            "out.",
            UserWarning,
            stacklevel=4,
        )
        self.posterior = self.posterior.with_scale(self.posterior.scale)  # which drops them
        check_options(self.options, self.posterior)

    def message(self, question: Mapping[str, Any]) -> str:
        """Return a question with its choices as a user puts it, without a chat template: what a chat interface is asked."""
        return self._encoder.message(question)

    def prompt(self, question: Mapping[str, Any]) -> str:
        """Return the text that the model is given for a question, before its answer."""
        return self._encoder.prompt(question)

    def predicted_task(self) -> Task:
        """Return the task with this pipeline's settings."""
        return MultipleChoice(self.settings)

    def example(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return a question as an example of a data set, see `QuestionEncoder`."""
        return self._encoder(question)

    def encode(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model inputs of a question. A prompt that is too long loses its beginning."""
        encoded = self._encoder(question)
        return {name: torch.tensor([value]) for name, value in encoded.items() if name != "labels"}

    @property
    def num_cut(self) -> int:
        """How many prompts were cut so far."""
        return self._encoder.num_truncated


register_pipeline(
    SwagMultipleChoicePipeline, AutoSwagModelForMultipleChoice, peft_classes=("PeftModelForCausalLM", "PeftModel")
)
