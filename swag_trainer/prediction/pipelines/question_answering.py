"""The pipeline "swag-question-answering": a question and its context in, spans of the context with averaged probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.pipelines.base import ChunkPipeline

from swag_trainer.adapters.positions import longest_input
from swag_trainer.errors import SwagError, shortened
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.answer_spans import AnswerSpans
from swag_trainer.prediction.decisions import PredictionOptions
from swag_trainer.prediction.loading import AutoSwagModelForQuestionAnswering
from swag_trainer.prediction.pipelines.base import PosteriorPipeline, check_top_k
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.prediction.tokenizers import check_tokens, encoding_errors
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks.context_windows import WindowEncoder
from swag_trainer.tasks.question_answering import QuestionAnswering

_MAX_LENGTH, _STRIDE, _MAX_ANSWER = 384, 128, 15
_UNCERTAINTIES = ("entropy", "aleatoric", "mutual_information", "between_members")


class SwagQuestionAnsweringPipeline(PosteriorPipeline, ChunkPipeline):
    """Extractive question answering with the predictions of S weight draws averaged.

        from transformers import pipeline
        import swag_trainer

        answer = pipeline("swag-question-answering", model="me/roberta-squad-swag", num_samples=10, seed=0)
        answer(question="Who wrote it?", context="It was written by Ada Lovelace in 1843.")
        # {'answer': 'Ada Lovelace', 'score': 0.91, 'start': 18, 'end': 30, 'entropy': 0.4, 'aleatoric': 0.35, 'mutual_information': 0.05}

    A question is ``{"question": ..., "context": ...}``; a list, a data set or a generator of them is answered one by one, as are two
    texts under these names. An ``id`` in it, as in SQuAD, is kept.

    The score is the averaged probability of a span, among all spans of up to ``max_answer_len`` tokens and, with
    ``handle_impossible_answer``, no answer: see `AnswerSpans.of`. The uncertainty, in nats, is that of the distribution over these spans:
    ``entropy = aleatoric + mutual_information``. A long context is cut into windows that overlap.

    Predictions are not withheld and have no sets: ``abstain_below``, ``risk``, ``coverage``, ``ood`` and ``prediction_set`` are refused, as are
    ``method`` and ``max_error``.

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, of any kind, for a model that has none attached.
        tokenizer: As in `PosteriorPipeline`; a fast one.
        top_k: How many answers to return, the likeliest first: 1 for one, more or None (all) for a list. This and all below here or in the call.
        max_answer_len: Most tokens of an answer. Default: 15.
        max_seq_len: Most tokens of a window. Default: 384, or what model and tokenizer can take.
        doc_stride: How many tokens of the context neighbouring windows share. Default: 128, or half of a shorter window.
        handle_impossible_answer: Let the answer be that there is none: an empty text, from 0 to 0, as in SQuAD 2.0. Each answer then has
            ``no_answer_probability``.
        **kwargs: ``num_samples``, ``seed``, ``scale`` and the other fields of `Sampling`, and what `transformers.Pipeline` takes.

    Attributes:
        posterior, options: See `PosteriorPipeline`.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range, or the tokenizer is a slow one.
    """

    swag_task = QuestionAnswering.name
    own_arguments = ("top_k", "max_answer_len", "max_seq_len", "doc_stride", "handle_impossible_answer")
    option_names = tuple(Sampling.field_names())
    takes_tokenizer_arguments = False

    def __init__(self, model: Any, *, posterior: WeightPosterior | None = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(model=model, posterior=posterior, tokenizer=tokenizer, **kwargs)
        self.window_encoder()  # refuses now what it would refuse with the first question

    def __call__(self, inputs: Any = None, *, question: Any = None, context: Any = None, **kwargs: Any) -> Any:
        """Answer a question, a list of questions, a data set or a generator of them."""
        if (question is None) != (context is None) or (inputs is None) == (question is None):
            raise SwagError(
                'A question is asked as {"question": ..., "context": ...} or with question=... and context=..., in one of the two ways.'
            )
        if inputs is None:
            is_one = isinstance(question, str) and isinstance(context, str)
            questions, contexts = ([question], [context]) if is_one else (question, context)
            if not hasattr(questions, "__len__") or not hasattr(contexts, "__len__"):
                raise SwagError(
                    f"Questions and contexts are texts or lists of them, got {type(question).__name__} and {type(context).__name__}."
                )
            if isinstance(contexts, str):
                contexts = [contexts] * len(questions)
            if isinstance(questions, str) or len(questions) != len(contexts):
                raise SwagError("As many contexts as questions are needed, or one for all.")
            asked = [{"question": one, "context": other} for one, other in zip(questions, contexts, strict=True)]
            inputs = asked[0] if is_one else asked
        if type(inputs).__module__.startswith("datasets."):
            inputs = list(inputs)
        return super().__call__(inputs, **kwargs)

    @staticmethod
    def as_squad(outputs: Iterable[Any]) -> list[dict[str, Any]]:
        """Return the first answer to each question as the metrics "squad" and "squad_v2" of the evaluate library take it.

        Args:
            outputs: What the pipeline returned for questions with an ``id``.

        Returns:
            ``id`` and ``prediction_text`` of each, with ``no_answer_probability`` where ``handle_impossible_answer`` was asked for.

        Raises:
            SwagError: An answer has no id.
        """
        found = []
        for output in outputs:
            first = output if isinstance(output, Mapping) else output[0]
            if "id" not in first:
                raise SwagError(f'The metrics of SQuAD need the "id" of each question, and {shortened(repr(first))} has none.')
            own = {"id": first["id"], "prediction_text": first["answer"]}
            found.append(own | {name: value for name, value in first.items() if name == "no_answer_probability"})
        return found

    def own_parameters(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide arguments among preprocessing, forward and postprocessing."""
        check_top_k(arguments.get("top_k"))
        longest = arguments.get("max_answer_len", _MAX_ANSWER)
        if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
            raise SwagError(f"max_answer_len must be a whole number from 1, got {shortened(repr(longest))}.")
        self.window_encoder(arguments.get("max_seq_len"), arguments.get("doc_stride"))
        # No more than what was given: the rest is the constructor's.
        windows = {name: arguments.pop(name) for name in ("max_seq_len", "doc_stride") if name in arguments}
        return windows, {}, arguments

    def preprocess(
        self, inputs: Any, max_seq_len: int | None = None, doc_stride: int | None = None, **_: Any
    ) -> Iterator[dict[str, Any]]:
        """Make model inputs of a question: one window of its context after the other."""
        if not isinstance(inputs, Mapping) or not {"question", "context"} <= set(inputs):
            raise SwagError(
                f'{self.swag_task} takes questions {{"question": ..., "context": ...}}, got {shortened(repr(inputs))}.'
            )
        with self._tokenizer_lock, encoding_errors():
            windows = self.window_encoder(max_seq_len, doc_stride)(inputs["question"], inputs["context"])
        asked = {name: inputs[name] for name in ("id", "context") if name in inputs}
        for window in windows:
            tensors = {name: torch.tensor([numbers]) for name, numbers in window.inputs.items()}
            yield {**tensors, "window": (window, asked), "is_last": window is windows[-1]}

    def _forward(self, model_inputs: Mapping[str, Any], options: PredictionOptions, link: Any = None) -> dict[str, Any]:
        check_tokens(model_inputs["input_ids"], self.model)
        logits = self._predictor_for(options, link).logits(model_inputs)
        own = logits.unflatten(1, (-1, 2)).unbind(1)  # (S, 2, T) for each window
        return {"logits": list(own), "window": model_inputs["window"], "is_last": model_inputs["is_last"]}

    def postprocess(
        self,
        all_outputs: Sequence[Mapping[str, Any]],
        top_k: int | None = 1,
        max_answer_len: int = _MAX_ANSWER,
        handle_impossible_answer: bool = False,
        options: PredictionOptions = PredictionOptions(),  # noqa: B008 - frozen
    ) -> Any:
        """Put the spans of a context in order."""
        predictor = self._predictor_for(options, None)
        logits = [outputs["logits"][0] for outputs in all_outputs]
        asked = all_outputs[0]["window"][1]
        spans = AnswerSpans.of(
            [outputs["window"][0] for outputs in all_outputs],
            logits,
            max_tokens=max_answer_len,
            has_no_answer=handle_impossible_answer,
            temperature=predictor.temperature,
            weights=predictor.draw_weights(len(logits[0])),
            members=predictor.draw_members(len(logits[0])),
        )
        shared = {name: float(value[0]) for name in _UNCERTAINTIES if (value := getattr(spans.predictive, name)) is not None}
        scores = spans.predictive.probabilities[0]
        if spans.has_no_answer:
            shared["no_answer_probability"] = float(scores[-1])
        named = {"id": asked["id"]} if "id" in asked else {}
        ranking = []
        for place in spans.ranked(top_k):
            start, end = spans.characters[place].tolist()
            own = {"answer": asked["context"][start:end], "score": float(scores[place]), "start": start, "end": end}
            ranking.append({**named, **own, **shared})
        return ranking[0] if top_k == 1 else ranking

    def window_encoder(self, max_length: int | None = None, stride: int | None = None) -> WindowEncoder:
        """Return what makes windows of contexts; default: as those of a call without ``max_seq_len`` and ``doc_stride``.

        Raises:
            SwagError: A number is out of range.
        """
        limit = longest_input(self.tokenizer, self.model)
        if max_length is not None and limit is not None and isinstance(max_length, int) and max_length > limit:
            raise SwagError(f"max_seq_len={max_length} is more than the {limit} tokens that model and tokenizer take.")
        length = min(_MAX_LENGTH, limit or _MAX_LENGTH) if max_length is None else max_length
        if stride is None:
            stride = min(_STRIDE, length // 2) if isinstance(length, int) else _STRIDE
        return WindowEncoder(self.tokenizer, max_length=length, stride=stride)


register_pipeline(
    SwagQuestionAnsweringPipeline,
    AutoSwagModelForQuestionAnswering,
    peft_classes=("PeftModelForQuestionAnswering", "PeftModel"),
)
