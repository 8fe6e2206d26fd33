"""The pipeline "swag-multiple-choice-encoder": a question with its choices in, averaged probabilities and their uncertainty out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swag_trainer.adapters.positions import longest_input
from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import PredictionOptions
from swag_trainer.prediction.loading import AutoSwagModelForMultipleChoiceEncoder
from swag_trainer.prediction.pipelines.choices import ChoicePipeline
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks import recorded_task
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.choice_pairs import ChoicePairCollator
from swag_trainer.tasks.multiple_choice_encoder import MultipleChoiceEncoder


class SwagMultipleChoiceEncoderPipeline(ChoicePipeline):
    """Answers multiple-choice questions with the predictions of S weight draws of an encoder averaged.

    The model is one that `transformers.AutoModelForMultipleChoice` loads: it reads each choice as a pair with its question.

        from transformers import pipeline
        import swag_trainer

        choose = pipeline("swag-multiple-choice-encoder", model="me/roberta-arc-swag", num_samples=10, seed=0)
        choose({"question": "What do plants take from the air?", "choices": ["Carbon dioxide", "Gold", "Sand"]})
        # {'label': 'A', 'choice': 'Carbon dioxide', 'score': 0.94, 'entropy': 0.23, 'mutual_information': 0.02}

    Everything else is as in `SwagMultipleChoicePipeline`, which is for causal language models.

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, of any kind, for a model that has none attached.
        tokenizer: As in `PosteriorPipeline`.
        max_choices: How many choices a question has at most; for the constructor only. Default: the number in the posterior's record, or 5.
        top_k: How many choices to return, the likeliest first: 1 for one prediction, None for a list of all. Also in a call.
        **kwargs: Options of `PredictionOptions`, in the constructor or in a call, and arguments of `transformers.Pipeline`.

    Attributes:
        posterior, options, num_truncated: See `PosteriorPipeline`.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range, or the model has no head for multiple choice.
    """

    swag_task = MultipleChoiceEncoder.name

    def __init__(
        self,
        model: Any,
        *,
        posterior: WeightPosterior | None = None,
        tokenizer: Any = None,
        max_choices: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, posterior=posterior, tokenizer=tokenizer, **kwargs)
        task = recorded_task(self.swag_task, self.posterior.record)
        assert isinstance(task, MultipleChoiceEncoder)
        self._task = (task if max_choices is None else MultipleChoiceEncoder(max_choices)).for_model(self.model)
        if self.tokenizer.pad_token_id is None:
            raise SwagError(f"{self.swag_task} pads choices of several lengths: the tokenizer needs a padding token.")
        limit = longest_input(self.tokenizer, self.model)
        self.data_collator: ChoicePairCollator = ChoicePairCollator(self.tokenizer, self._task.max_choices, max_length=limit)

    def predicted_task(self) -> Task:
        """Return the task with this pipeline's number of choices."""
        return self._task

    def example(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return a question as an example of a data set, see `ChoicePairCollator.encode`."""
        return self.data_collator.encode(question)

    def encode(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the pairs of a question as lists of numbers, which transformers does not pad."""
        encoded = self.example(question)
        encoded.pop("labels", None)
        return {"encoded": [encoded]}

    @property
    def num_cut(self) -> int:
        """How many pairs were cut so far."""
        return self.data_collator.num_truncated

    def _forward(self, model_inputs: Mapping[str, Any], options: PredictionOptions, link: Any = None) -> dict[str, Any]:
        # A batch of one is a list, a larger one a list of such lists.
        rows = [row for rows in model_inputs["encoded"] for row in (rows if isinstance(rows, list) else [rows])]
        return super()._forward({**self.data_collator(rows), "choices": model_inputs["choices"]}, options, link)


register_pipeline(SwagMultipleChoiceEncoderPipeline, AutoSwagModelForMultipleChoiceEncoder)
