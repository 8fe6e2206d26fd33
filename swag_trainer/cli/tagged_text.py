"""Texts whose words have tags, as named-entity recognition has them: rows of {"tokens": [...], "ner_tags": [...]}, encoded for a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from transformers import DataCollatorForTokenClassification

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.classifier import warn_of_truncated
from swag_trainer.cli.encoded import Encoded, EncodedTask
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_sources import Row, missing_column, named_column, refuse
from swag_trainer.errors import SwagError, shortened
from swag_trainer.prediction.lengths import count_truncated
from swag_trainer.tasks.token_classification import IGNORED

_WORDS, _TAGS = ("tokens", "words"), ("ner_tags", "pos_tags", "chunk_tags", "tags", "labels")


class TaggedText(EncodedTask):
    """The first token of a word has its tag, all others -100, as in the scripts of transformers.

    Raises:
        SwagError: ``--labels`` does not name each of the model's tags once, or the tokenizer does not know the word of a token.
    """

    takes_ood: ClassVar[bool] = False

    def __init__(self, options: TextOptions, classifier: Any) -> None:
        super().__init__(options, classifier)
        self.data_collator = DataCollatorForTokenClassification(classifier.tokenizer)
        self.tags = self.class_numbers(what="tag")
        if not classifier.tokenizer.is_fast:
            raise SwagError("Tags of words need a fast tokenizer, which knows the word of each token.")

    def encode(self, rows: Sequence[Row], *, needs_labels: bool) -> Encoded:
        """Encode texts.

        Warns:
            UserWarning: How many texts are longer than the model takes; the words beyond have no prediction.
        """
        tokenizer, limit = self.classifier.tokenizer, longest_input(self.classifier.tokenizer, self.classifier.model)
        encoded, texts, clusters, num_truncated = [], [], [], 0
        for row in rows:
            words, tags = self._words_and_tags(row)
            example = tokenizer(words, is_split_into_words=True, truncation=limit is not None, max_length=limit)
            num_truncated += count_truncated(example)
            labels, before = [], None
            for word in example.word_ids():
                tag = IGNORED if word is None or word == before else tags[word]
                labels.append(tag)
                if tag != IGNORED:
                    texts.append(words[word])
                    clusters.append(len(encoded))
                before = word
            encoded.append({**example, "labels": labels})
        warn_of_truncated(num_truncated, of=len(rows), limit=limit)
        return Encoded(encoded, texts, np.array(clusters, dtype=np.int64))

    def _words_and_tags(self, row: Row) -> tuple[list[str], list[int]]:
        found = []
        for given, option, usual in (
            (self.options.text_column, "--text-column", _WORDS),
            (self.options.label_column, "--label-column", _TAGS),
        ):
            column = named_column(row.values, given, usual)
            several = [name for name in usual if named_column(row.values, None, (name,)) is not None]
            if column is None:
                refuse(row, missing_column(row.values, given, usual, option))
            if given is None and len(several) > 1:
                refuse(row, f"it has the columns {several}; {option} says which of them it is.")
            found.append((column, row.values[column]))
        (column, words), (other, tags) = found
        if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
            refuse(row, f"{column!r} is a list of words, none of them empty, and holds {shortened(repr(words))}.")
        if not isinstance(tags, list) or len(tags) != len(words):
            refuse(
                row, f"{other!r} is a list with a tag for each of the {len(words)} words, and holds {shortened(repr(tags))}."
            )
        return words, [self.tags.number(tag, row, besides=IGNORED) for tag in tags]
