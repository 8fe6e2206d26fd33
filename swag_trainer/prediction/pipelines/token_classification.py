"""The pipeline "swag-token-classification": text in, labelled tokens or entities with averaged probabilities and their uncertainty out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from swag_trainer.adapters.positions import longest_input
from swag_trainer.errors import SwagError, shortened
from swag_trainer.prediction.lengths import count_truncated
from swag_trainer.prediction.loading import AutoSwagModelForTokenClassification
from swag_trainer.prediction.pipelines.base import PosteriorPipeline
from swag_trainer.prediction.predictive import Predictive
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.prediction.tokenizers import encoding_errors
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks.token_classification import SPECIAL, TokenClassification

_UNCERTAINTIES = ("entropy", "aleatoric", "mutual_information", "between_members")
_TOKENS = "tokens"  # of an entity or a word, until its uncertainty is known


class SwagTokenClassificationPipeline(PosteriorPipeline, TokenClassificationPipeline):
    """Token classification with the predictions of S weight draws averaged.

    Everything that `transformers.TokenClassificationPipeline` takes and returns holds here too (``aggregation_strategy``,
    ``ignore_labels``, ``stride`` for long texts, ``is_split_into_words``, ``batch_size``, data sets and generators). Its rules for words and entities are applied to the
    averaged probabilities. Each token or entity also has its ``entropy``, its ``aleatoric`` part and its ``mutual_information`` in nats, and
    those of a mixture ``between_members``.

        from transformers import pipeline
        import swag_trainer

        tag = pipeline("swag-token-classification", model="me/bert-ner-swag", aggregation_strategy="simple")
        tag("Marie Curie went to Paris.")
        # [{'entity_group': 'PER', 'score': 0.98, 'word': 'Marie Curie', 'start': 0, 'end': 11, 'entropy': 0.1, 'aleatoric': 0.08, ...}, ...]

    The uncertainty of an entity is a mean over what its score is a mean over, so it is in nats per token ("simple") or per word, and
    ``entropy = aleatoric + mutual_information`` holds: with "simple" over its tokens; with "first" over the first tokens of its words;
    with "max" over the token of each word that has the highest score; with "average" over its words, of the mean over the tokens of
    each. It is the uncertainty of the single labels. It is not that of the entity as a whole, whose tokens are predicted one by one.

    Predictions are not withheld and have no sets: ``abstain_below``, ``risk``, ``coverage``, ``ood`` and ``prediction_set`` are refused.
    Their guarantees are for examples that do not depend on each other, and the tokens of a text do.

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, of any kind, for a model that has none attached.
        tokenizer: As in `PosteriorPipeline`.
        aggregation_strategy: "none" for tokens, "simple", "first", "average" or "max" for entities, as in transformers; this and all below here or in
            the call.
        ignore_labels: Labels to leave out. Default: ``["O"]``.
        stride: Cut a long text into windows that overlap by this many tokens; default: it is truncated.
        is_split_into_words, delimiter, offset_mapping: As in transformers.
        **kwargs: ``num_samples``, ``seed``, ``scale`` and the other fields of `Sampling`, ``method`` and ``max_error``, and what
            `transformers.Pipeline` takes. Other arguments are refused.

    Attributes:
        posterior, options, num_truncated: See `PosteriorPipeline`.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range, or does not go with another one or with the tokenizer.
    """

    swag_task = TokenClassification.name
    own_arguments = (
        "aggregation_strategy",
        "delimiter",
        "ignore_labels",
        "is_split_into_words",
        "offset_mapping",
        "stride",
    )
    option_names = (*Sampling.field_names(), "method", "max_error")
    takes_tokenizer_arguments = False

    def own_parameters(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide arguments as transformers' pipeline does."""
        self._check(**arguments)
        try:
            return TokenClassificationPipeline._sanitize_parameters(self, **arguments)
        except ValueError as error:  # an aggregation or a stride that the tokenizer or each other excludes
            raise SwagError(f"{self.swag_task} cannot do this: {error}") from error

    def preprocess(self, sentence: Any, offset_mapping: Any = None, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Make model inputs of a text: one window, or with a stride as many as it takes."""
        is_split = bool(arguments.get("is_split_into_words"))
        if not isinstance(sentence, list if is_split else str):
            what = "a list of words" if is_split else "a text"
            raise SwagError(f"{self.swag_task} takes {what}, got {shortened(repr(sentence))}.")
        limit, windows = longest_input(self.tokenizer, self.model), dict(arguments.pop("tokenizer_params", {}))
        length = {} if limit is None else {"max_length": limit}
        with self._tokenizer_lock, encoding_errors():
            parts = list(
                TokenClassificationPipeline.preprocess(
                    self, sentence, offset_mapping, tokenizer_params=windows | length, **arguments
                )
            )
            # What transformers' pipeline gives does not say whether it was cut.
            if "stride" not in windows and parts[0]["input_ids"].shape[1] == limit:
                encoding = self.tokenizer(sentence, truncation=True, is_split_into_words=is_split, **length)
                self.note_truncated(count_truncated(encoding))
        yield from parts

    def _forward(self, model_inputs: Mapping[str, Any], options: Any, link: Any = None) -> dict[str, Any]:
        special = model_inputs[SPECIAL]
        if special.all():  # a text without tokens
            return {"predictive": [None] * len(special), **model_inputs}
        return {**super()._forward(model_inputs, options, link), **model_inputs}

    def postprocess(
        self,
        all_outputs: Sequence[Mapping[str, Any]],
        aggregation_strategy: AggregationStrategy = AggregationStrategy.NONE,
        ignore_labels: Sequence[str] | None = None,
        options: Any = None,
    ) -> list[dict[str, Any]]:
        """Put the predictions for the windows of a text into transformers' form, with their uncertainty."""
        ignored = ["O"] if ignore_labels is None else ignore_labels
        entities = []
        for window in all_outputs:
            predictive: Any = self.predictive_of(window)
            if predictive is not None:
                whole = {name: all_outputs[0].get(name) for name in ("sentence", "word_to_chars_map")}
                entities += self._entities({**window, **whole}, predictive, aggregation_strategy)
        kept = [entity for entity in entities if entity.get("entity", entity.get("entity_group")) not in ignored]
        return self.aggregate_overlapping_entities(kept) if len(all_outputs) > 1 else kept

    def aggregate_word(self, entities: list[dict[str, Any]], aggregation_strategy: AggregationStrategy) -> dict[str, Any]:
        """Return the word that tokens make, as transformers does, with the tokens that its score comes from."""
        used = entities
        if aggregation_strategy == AggregationStrategy.FIRST:
            used = entities[:1]
        elif aggregation_strategy == AggregationStrategy.MAX:
            used = [max(entities, key=lambda entity: entity["scores"].max())]
        return super().aggregate_word(entities, aggregation_strategy) | {_TOKENS: [entity["index"] for entity in used]}

    def group_sub_entities(self, entities: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the entity that words or tokens make, as transformers does, with the tokens that the score of each comes from."""
        tokens = [entity[_TOKENS] if _TOKENS in entity else [entity["index"]] for entity in entities]
        return super().group_sub_entities(entities) | {_TOKENS: tokens}

    def _entities(
        self, window: Mapping[str, Any], predictive: Predictive, strategy: AggregationStrategy
    ) -> list[dict[str, Any]]:
        """Return the tokens or entities of one window with their uncertainty."""
        special, offsets = window[SPECIAL][0].numpy(), window.get("offset_mapping")
        scores = np.zeros((len(special), predictive.probabilities.shape[1]))
        scores[special == 0] = predictive.probabilities
        tokens = self.gather_pre_entities(
            window["sentence"],
            window["input_ids"][0].numpy(),
            scores,
            None if offsets is None else offsets[0],
            special,
            strategy,
            word_ids=window.get("word_ids"),
            word_to_chars_map=window["word_to_chars_map"],
        )
        places = np.cumsum(special == 0) - 1
        values = {name: value for name in _UNCERTAINTIES if (value := getattr(predictive, name)) is not None}
        found = []
        for entity in self.aggregate(tokens, strategy):
            used = entity.pop(_TOKENS) if _TOKENS in entity else [[entity["index"]]]
            uncertainty = {
                name: float(np.mean([value[places[indices]].mean() for indices in used])) for name, value in values.items()
            }
            found.append({**entity, "score": float(entity["score"]), **uncertainty})
        return found

    def _check(
        self,
        aggregation_strategy: Any = None,
        stride: Any = None,
        ignore_labels: Any = None,
        is_split_into_words: bool = False,
        **_: Any,
    ) -> None:
        """Refuse arguments that transformers' pipeline would take for something else, or refuse late.

        Raises:
            SwagError: One of them is unknown, of another type or out of range.
        """
        names = [strategy.value for strategy in AggregationStrategy]
        if (
            aggregation_strategy is not None
            and str(getattr(aggregation_strategy, "value", aggregation_strategy)).lower() not in names
        ):
            raise SwagError(f"aggregation_strategy must be one of {names}, got {shortened(repr(aggregation_strategy))}.")
        if ignore_labels is not None and isinstance(ignore_labels, str):
            raise SwagError(f"ignore_labels is a list of labels, got the text {shortened(repr(ignore_labels))}.")
        if is_split_into_words and not self.tokenizer.is_fast:
            raise SwagError("is_split_into_words=True needs a fast tokenizer, which knows the word of each token.")
        if stride is not None:
            limit = longest_input(self.tokenizer, self.model)
            most = None if limit is None else limit - self.tokenizer.num_special_tokens_to_add() - 1
            if isinstance(stride, bool) or not isinstance(stride, int) or stride < 0 or (most is not None and stride > most):
                raise SwagError(
                    f"stride is how many tokens neighbouring windows share, a whole number from 0"
                    f"{'' if most is None else f' to {most} for windows of {limit} tokens'}, got {shortened(repr(stride))}."
                )


register_pipeline(
    SwagTokenClassificationPipeline,
    AutoSwagModelForTokenClassification,
    peft_classes=("PeftModelForTokenClassification", "PeftModel"),
)
