"""Base class of the pipelines for multiple choice: questions with their choices in, ranked choices with their uncertainty out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from swag_trainer.errors import SwagError
from swag_trainer.prediction.decisions import PredictionOptions, decide
from swag_trainer.prediction.pipelines.base import PosteriorPipeline, check_top_k
from swag_trainer.prediction.tokenizers import encoding_errors
from swag_trainer.tasks.questions import LETTERS


class ChoicePipeline(PosteriorPipeline):
    """Answers multiple-choice questions. A subclass makes model inputs of a question in `encode`.

    Attributes:
        data_collator: Makes a batch of what `example` returned.
    """

    own_arguments = ("top_k",)
    data_collator: Callable[[list[Any]], Any]

    @abstractmethod
    def example(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return a question as an example of a data set, with the place of its right choice in ``labels``, such as `tune` takes.

        Raises:
            SwagError: It is no question.
        """

    @abstractmethod
    def encode(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model inputs of a question, as a batch of one."""

    @property
    @abstractmethod
    def num_cut(self) -> int:
        """How many questions `example` and `encode` have cut so far."""

    def own_parameters(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide arguments among preprocessing, forward and postprocessing; the tokenizer's are refused."""
        other = next((name for name in arguments if name != "top_k"), None)
        if other is not None:
            raise SwagError(f"The prompt is tokenised whole, so there is no argument {other!r} of the tokenizer.")
        check_top_k(arguments.get("top_k"))
        return {}, {}, arguments  # no more than what was given: the rest is the constructor's

    def preprocess(self, inputs: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        """Make model inputs of a question. One that the model cannot take is cut."""
        if not isinstance(inputs, Mapping):
            raise SwagError(
                f'{self.swag_task} takes questions {{"question": ..., "choices": [...]}}, got {type(inputs).__name__}.'
            )
        with self._tokenizer_lock, encoding_errors():
            before, encoded = self.num_cut, self.encode(inputs)
            self.note_truncated(self.num_cut - before)
        choices = inputs["choices"]
        return {**encoded, "choices": [list(choices["text"] if isinstance(choices, Mapping) else choices)]}

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
