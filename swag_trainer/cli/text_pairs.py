"""Pairs of a text and a hypothesis about it, as natural-language inference (NLI) has them, encoded for the model of zero-shot classification."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import DataCollatorWithPadding

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.class_numbers import ClassNumbers
from swag_trainer.cli.encoded import EncodedTask, refuse
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_sources import Row, missing_column, named_column
from swag_trainer.errors import shortened
from swag_trainer.prediction.lengths import count_truncated

_PREMISES, _HYPOTHESES = ("premise", "sentence1", "text", "sentence"), ("hypothesis", "sentence2")


class TextPairs(EncodedTask):
    """Rows of {"premise": ..., "hypothesis": ..., "label": ...}, labelled with the classes of NLI that the model was trained on."""

    takes_ood: ClassVar[bool] = True

    def __init__(self, options: TextOptions, classifier: Any) -> None:
        super().__init__(options, classifier)
        self.data_collator = DataCollatorWithPadding(classifier.tokenizer)
        self._classes = ClassNumbers(options, classifier.model.config)

    def encode(self, rows: Sequence[Row], *, needs_labels: bool) -> tuple[list[dict[str, Any]], list[str], None]:
        """Encode pairs; of one that is too long the text is truncated, as the pipeline does it.

        Warns:
            UserWarning: How many texts were truncated.
        """
        tokenizer, limit = self.classifier.tokenizer, longest_input(self.classifier.tokenizer, self.classifier.model)
        encoded, texts, num_truncated = [], [], 0
        for row in rows:
            pair = self._text(row, self.options.text_column, _PREMISES), self._text(row, None, _HYPOTHESES)
            example = tokenizer(*pair, truncation="only_first" if limit else False, max_length=limit)
            num_truncated += count_truncated(example)
            encoded.append({**example, **({"labels": self._classes.of_row(row)} if needs_labels else {})})
            texts.append(" / ".join(pair))
        if num_truncated:
            warnings.warn(
                f"{num_truncated} of {len(rows)} texts have more than {limit} tokens and are truncated.", stacklevel=2
            )
        return encoded, texts, None

    def _text(self, row: Row, given: str | None, usual: tuple[str, ...]) -> str:
        column = named_column(row.values, given, usual)
        if column is None:
            refuse(row, missing_column(row.values, given, usual, "--text-column"))
        text = row.values[column]
        if not isinstance(text, str) or not text.strip():
            refuse(row, f"{column!r} holds {shortened(repr(text))}, and a text is needed.")
        return text
