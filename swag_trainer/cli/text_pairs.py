"""Pairs of a text and a hypothesis about it, as natural-language inference (NLI) has them, encoded for the model of zero-shot classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import DataCollatorWithPadding

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.classifier import warn_of_truncated
from swag_trainer.cli.encoded import Encoded, EncodedTask
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_sources import Row, named_column, refuse
from swag_trainer.errors import shortened
from swag_trainer.prediction.lengths import count_truncated
from swag_trainer.prediction.tokenizers import encoding_errors

_PREMISES, _HYPOTHESES = ("premise", "sentence1", "text", "sentence"), ("hypothesis", "sentence2")


class TextPairs(EncodedTask):
    """Rows of {"premise": ..., "hypothesis": ..., "label": ...}, labelled with the classes of NLI that the model was trained on."""

    takes_ood: ClassVar[bool] = True
    has_features: ClassVar[bool] = True
    unused_options: ClassVar[tuple[str, ...]] = ("text_column",)

    def __init__(self, options: TextOptions, classifier: Any) -> None:
        super().__init__(options, classifier)
        self.data_collator = DataCollatorWithPadding(classifier.tokenizer)
        self._classes = self.class_numbers()

    def encode(self, rows: Sequence[Row], *, needs_labels: bool) -> Encoded:
        """Encode pairs; of one that is too long the text is truncated, as the pipeline does it.

        Warns:
            UserWarning: How many texts were truncated.
        """
        tokenizer, limit = self.classifier.tokenizer, longest_input(self.classifier.tokenizer, self.classifier.model)
        encoded, texts, num_truncated = [], [], 0
        for row, label in self._classes.labelled(rows, needs_labels=needs_labels):
            pair = self._text(row, _PREMISES), self._text(row, _HYPOTHESES)
            alone = len(tokenizer("", pair[1])["input_ids"])
            if limit is not None and alone >= limit:
                refuse(row, f"its hypothesis has {alone} tokens, and the model takes {limit} with its premise.")
            with encoding_errors():
                example = tokenizer(*pair, truncation="only_first" if limit else False, max_length=limit)
            num_truncated += count_truncated(example)
            encoded.append({**example, **({} if label is None else {"labels": label})})
            texts.append(" / ".join(pair))
        warn_of_truncated(num_truncated, of=len(rows), limit=limit)
        return Encoded(encoded, texts)

    def _text(self, row: Row, usual: tuple[str, ...]) -> str:
        column = named_column(row.values, None, usual)
        if column is None:
            refuse(row, f"it has no column {' or '.join(map(repr, usual))}, but {sorted(map(str, row.values))}: rename one.")
        text = row.values[column]
        if not isinstance(text, str) or not text.strip():
            refuse(row, f"{column!r} holds {shortened(repr(text))}, and a text is needed.")
        return text
