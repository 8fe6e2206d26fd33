"""Texts whose words have tags, as named-entity recognition has them: rows of {"tokens": [...], "ner_tags": [...]}, encoded for a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.hub_datasets import load_splits
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_sources import SPLIT_NAMES, missing_column, named_column, records_by_split
from swag_trainer.errors import SwagError, shortened
from swag_trainer.prediction.lengths import count_truncated
from swag_trainer.tasks.token_classification import IGNORED

_WORDS, _TAGS = ("tokens", "words"), ("ner_tags", "pos_tags", "chunk_tags", "tags", "labels")


@dataclass(frozen=True, eq=False)
class EncodedTags:
    """The tagged texts of one split.

    Attributes:
        name: What the data is called; no path.
        split: Which part of it.
        revision: Commit on the Hub, None for files.
        rows: Texts as the Trainer takes them: the first token of a word has its tag, all others -100.
        words: The word of each tag, text after text.
        clusters: The text of each tag. Shape (tags,).
    """

    name: str
    split: str
    revision: str | None
    rows: list[dict[str, Any]]
    words: list[str]
    clusters: np.ndarray


@dataclass(frozen=True)
class _Tagged:
    """A text as it stands in the data."""

    words: Sequence[str]
    tags: Sequence[Any]
    where: str


def read_tags(options: TextOptions, split: str, classifier: Any) -> EncodedTags:
    """Read the texts of a split.

    Args:
        options: With the data set, and the names of its columns of words and of tags where they are not usual ones.
        split: Which part of the data.
        classifier: The pipeline of the task, with the tokenizer, and the model whose config names the tags.

    Warns:
        UserWarning: How many texts are longer than the model takes; the words beyond have no prediction.

    Raises:
        SwagError: The data cannot be read, has no such split, or has a text with words or tags that cannot be used.
    """
    texts, revision = _texts(options, split)
    names = [classifier.model.config.id2label[index] for index in range(classifier.model.config.num_labels)]
    tokenizer, limit = classifier.tokenizer, longest_input(classifier.tokenizer, classifier.model)
    if not tokenizer.is_fast:
        raise SwagError("Tags of words need a fast tokenizer, which knows the word of each token.")
    rows, words, clusters, num_truncated = [], [], [], 0
    for text in texts:
        tags = [_number(tag, names, text.where) for tag in text.tags]
        encoded = tokenizer(list(text.words), is_split_into_words=True, truncation=limit is not None, max_length=limit)
        num_truncated += count_truncated(encoded)
        labels, before = [], None
        for word in encoded.word_ids():
            if word is None or word == before:
                labels.append(IGNORED)
            else:
                labels.append(tags[word])
                words.append(text.words[word])
                clusters.append(len(rows))
            before = word
        rows.append({**encoded, "labels": labels})
    if num_truncated:
        warnings.warn(f"{num_truncated} of {len(rows)} texts have more than {limit} tokens and are truncated.", stacklevel=2)
    path = Path(options.dataset)
    name = options.dataset_name or (path.name if path.exists() else options.dataset)
    return EncodedTags(name, SPLIT_NAMES.get(split, split), revision, rows, words, np.array(clusters, dtype=np.int64))


def _texts(options: TextOptions, split: str) -> tuple[list[_Tagged], str | None]:
    path, wanted = Path(options.dataset), SPLIT_NAMES.get(split, split)
    columns = (options.text_column, options.label_column)
    if path.exists():
        found = {
            name: [(where, record.values, record.problem) for where, record in records]
            for name, records in records_by_split(path).items()
        }
        revision, name_of = None, {}
    else:
        name, _, config = options.dataset.partition(":")
        splits, revision = load_splits(name, config or None)
        splits = {SPLIT_NAMES.get(each, each): dataset for each, dataset in splits.items()}
        found = {each: _Rows(dataset, f"the split {each!r} of {options.dataset!r}") for each, dataset in splits.items()}
        name_of = splits[wanted].features if wanted in splits else {}
    if wanted not in found:
        raise SwagError(
            f"{options.dataset!r} has no split {wanted!r}; it has {shortened(', '.join(map(repr, sorted(found))))}. Tagged texts are not divided "
            "into splits."
        )
    texts = [_tagged(where, values, problem, columns, name_of) for where, values, problem in found[wanted]]
    if not texts:
        raise SwagError(f"{options.dataset!r} has no examples in the split {wanted!r}.")
    return texts, revision


@dataclass(frozen=True)
class _Rows:
    """Rows of a data set of the Hub, read when they are asked for."""

    dataset: Any
    where: str

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any], None]]:
        for number, record in enumerate(self.dataset, start=1):
            yield f"example {number} of {self.where}", record, None


def _tagged(
    where: str,
    values: Mapping[str, Any],
    problem: str | None,
    columns: Iterable[str | None],
    features: Mapping[str, Any],
) -> _Tagged:
    usual = (("--text-column", _WORDS), ("--label-column", _TAGS))
    found = []
    for given, (option, names) in zip(columns, usual, strict=True):
        column = named_column(values, given, names)
        if problem is None and column is None:
            problem = missing_column(values, given, names, option)
        found.append(column)
    words, tags = (None if column is None else values[column] for column in found)
    if problem is None and not (
        isinstance(words, list) and words and all(isinstance(word, str) and word.strip() for word in words)
    ):
        problem = f"{found[0]!r} is a list of words, none of them empty, and holds {shortened(repr(words))}."
    elif problem is None and not (isinstance(tags, list) and len(tags) == len(words or ())):
        problem = (
            f"{found[1]!r} is a list with a tag for each of the {len(words or ())} words, and holds {shortened(repr(tags))}."
        )
    if problem is not None:
        raise SwagError(f"The example in {where} cannot be used: {problem}")
    named = getattr(getattr(features.get(found[1]), "feature", None), "int2str", None)
    return _Tagged(words, tags if named is None else [named(tag) for tag in tags], where)


def _number(tag: Any, names: Sequence[str], where: str) -> int:
    """Return the number of a tag: of its name, or the number that it is."""
    if isinstance(tag, str) and tag in names:
        return names.index(tag)
    if isinstance(tag, int) and not isinstance(tag, bool) and 0 <= tag < len(names):
        return tag
    raise SwagError(
        f"The example in {where} has the tag {shortened(repr(tag))}; the model has {', '.join(map(repr, names[:10]))}"
        f"{' ...' if len(names) > 10 else ''}, or their numbers from 0."
    )
