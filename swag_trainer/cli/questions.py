"""Multiple-choice questions of a file or of the Hub, encoded for the model that answers them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from swag_trainer.cli.encoded import Encoded, EncodedTask
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_sources import Row, refuse
from swag_trainer.errors import SwagError
from swag_trainer.tasks.questions import ANSWER_KEY, ANSWER_NUMBERS, question_text


class Questions(EncodedTask):
    """Rows of {"question": ..., "choices": [...], "answer": ...}, or as `swag_trainer.tasks.questions.Question` reads them."""

    takes_ood: ClassVar[bool] = True
    unused_options: ClassVar[tuple[str, ...]] = ("labels", "label_column")

    def __init__(self, options: TextOptions, classifier: Any) -> None:
        super().__init__(options, classifier)
        self.data_collator = classifier.data_collator

    def encode(self, rows: Sequence[Row], *, needs_labels: bool) -> Encoded:
        """Encode questions.

        Warns:
            UserWarning: How many prompts are longer than the model takes, and were cut.
        """
        encoded, texts, before = [], [], self.classifier.num_cut
        for row in rows:
            values = self._question(row, needs_labels)
            try:
                example = self.classifier.example(values)
            except SwagError as error:
                raise SwagError(f"The example in {row.where} cannot be used: {error}") from error
            if needs_labels and "labels" not in example:
                raise SwagError(f'The question in {row.where} has no right choice: "answer" names its place, from 0.')
            encoded.append(example)
            texts.append(question_text(values))
        if count := self.classifier.num_cut - before:
            warnings.warn(f"{count} of {len(rows)} questions are too long for the model and were cut.", stacklevel=2)
        return Encoded(encoded, texts)

    def _question(self, row: Row, needs_labels: bool) -> Mapping[str, Any]:
        values, column = dict(row.values), self.options.text_column
        if column is not None and needs_labels:  # names a column of --dataset
            if column not in values:
                refuse(row, f"it has no column {column!r}, but {sorted(map(str, values))}; --text-column names it.")
            values["question"] = values[column]
        return (
            values
            if needs_labels
            else {name: value for name, value in values.items() if name not in (*ANSWER_NUMBERS, ANSWER_KEY)}
        )
