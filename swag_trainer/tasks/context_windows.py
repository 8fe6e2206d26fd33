"""Questions about a context as model inputs: windows that overlap, which tokens an answer may begin and end at, and where it stands."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swag_trainer.errors import SwagError, shortened

ANSWERABLE = "answerable_tokens"
START, END = "start_positions", "end_positions"


@dataclass(frozen=True)
class ContextWindow:
    """One window of a context behind its question.

    Attributes:
        inputs: What the model takes: ``input_ids``, ``attention_mask`` and so on, lists of T numbers, and `ANSWERABLE`, 1 for the tokens of the
            context and the one that stands for no answer.
        offsets: First character in the context of each token and the one behind its last; None for tokens that are not the context's.
        begins: Places of the context's tokens that have more context around them here than in any other window: an answer begins at
            one of these, so that it is counted once.
        no_answer: Place of the token that stands for no answer.
    """

    inputs: Mapping[str, list[int]]
    offsets: Sequence[tuple[int, int] | None]
    begins: Sequence[int]
    no_answer: int


class WindowEncoder:
    """Makes model inputs of questions and their contexts, as the SQuAD scripts do (Devlin et al. 2019, arXiv:1810.04805).

    The question comes first; with a tokenizer that pads on the left, the context does.

    Args:
        tokenizer: A fast one, which knows the characters of each token.
        max_length: T, most tokens of a window, question and special tokens included.
        stride: How many tokens of the context neighbouring windows share.

    Raises:
        SwagError: The tokenizer is a slow one, or a number is out of range.
    """

    def __init__(self, tokenizer: Any, *, max_length: int = 384, stride: int = 128) -> None:
        if not tokenizer.is_fast:
            raise SwagError("Question answering needs a fast tokenizer, which knows the characters of each token.")
        for name, number, fewest in (("max_length", max_length, 1), ("stride", stride, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < fewest:
                raise SwagError(f"{name} must be a whole number from {fewest}, got {shortened(repr(number))}.")
        if stride >= max_length:
            raise SwagError(f"Windows of {max_length} tokens cannot share stride={stride} of them.")
        if tokenizer.truncation_side != "right":  # windows go from the context's beginning to its end
            tokenizer = copy.copy(tokenizer)  # shares the vocabulary: the pipeline makes an encoder for each question
            tokenizer.truncation_side = "right"
        self._tokenizer, self._length, self._stride = tokenizer, max_length, stride
        self._is_question_first = tokenizer.padding_side != "left"

    def __call__(self, question: str, context: str) -> list[ContextWindow]:
        """Return the windows of a context, from its beginning to its end.

        Raises:
            SwagError: Question or context is no text, the context has no token, or the question leaves no space for it.
        """
        for name, text in (("question", question), ("context", context)):
            if not isinstance(text, str) or not text.strip():
                raise SwagError(f"A question is asked about a context, both texts; got {name}={shortened(repr(text))}.")
        own = len(self._tokenizer(question, add_special_tokens=False)["input_ids"])
        room = self._length - own - self._tokenizer.num_special_tokens_to_add(pair=True)
        if room <= self._stride:
            raise SwagError(
                f"The question {shortened(repr(question))} has {own} tokens, which leaves {max(room, 0)} of {self._length} for the context, of "
                f"which neighbouring windows share {self._stride}. Ask for longer windows or a smaller stride."
            )
        side = int(self._is_question_first)
        encoded = self._tokenizer(
            *((question, context) if self._is_question_first else (context, question)),
            truncation="only_second" if self._is_question_first else "only_first",
            max_length=self._length,
            stride=self._stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = [name for name in encoded if name not in ("offset_mapping", "overflow_to_sample_mapping")]
        places = [
            [place for place, part in enumerate(encoded.sequence_ids(number)) if part == side]
            for number in range(len(encoded["input_ids"]))
        ]
        if not places[0]:
            raise SwagError(f"The context {shortened(repr(context))} has no token that the tokenizer knows.")
        windows = []
        for number, (own_places, begins) in enumerate(
            zip(places, _most_context([*map(len, places)], self._stride), strict=True)
        ):
            ids, is_context = encoded["input_ids"][number], set(own_places)
            no_answer = self._no_answer(ids)
            answerable = [int(place in is_context or place == no_answer) for place in range(len(ids))]
            offsets = [
                _without_spaces(*pair, context) if place in is_context else None
                for place, pair in enumerate(encoded["offset_mapping"][number])
            ]
            inputs = {name: list(encoded[name][number]) for name in names} | {ANSWERABLE: answerable}
            windows.append(ContextWindow(inputs, offsets, [own_places[index] for index in begins], no_answer))
        return windows

    def training_rows(self, example: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each window of an example as SQuAD has it, with `START` and `END`; those of no answer where it is elsewhere.

        Args:
            example: ``question``, ``context``, and ``answers`` with ``text`` and ``answer_start``, of which the first one counts; empty where the
                question cannot be answered.

        Raises:
            SwagError: A column is missing, or the answer does not stand at its place in the context.
        """
        windows = self(example.get("question"), example.get("context"))  # type: ignore[arg-type]  # checked there
        answers = example.get("answers")
        lists = [answers.get(name) if isinstance(answers, Mapping) else None for name in ("text", "answer_start")]
        if not all(hasattr(each, "__len__") and not isinstance(each, str) for each in lists) or len(lists[0]) != len(lists[1]):
            raise SwagError(
                f'"answers" is {{"text": [...], "answer_start": [...]}}, empty lists where there is no answer; got {shortened(repr(answers))}.'
            )
        span = None
        if len(answers["text"]):
            text, first = answers["text"][0], answers["answer_start"][0]
            is_place = isinstance(text, str) and isinstance(first, (int, np.integer)) and first >= 0
            if not is_place or not text.strip() or example["context"][first : first + len(text)] != text:
                raise SwagError(f"The answer {shortened(repr(text))} does not stand at character {first} of its context.")
            begin = first + len(text) - len(text.lstrip())
            span = (begin, begin + len(text.strip()))  # no token stands for the spaces around an answer
        rows = []
        for window in windows:
            start, end = _places_of(span, window)
            rows.append({**window.inputs, START: start, END: end})
        return rows

    def _no_answer(self, ids: Sequence[int]) -> int:
        marks = (self._tokenizer.cls_token_id, self._tokenizer.bos_token_id)
        return next((ids.index(mark) for mark in marks if mark is not None and mark in ids), 0)


def _without_spaces(first: int, last: int, context: str) -> tuple[int, int]:
    """Return the characters of a token without the spaces around it, which byte-level tokenizers count to it; all of one of spaces."""
    text = context[first:last]
    begin = first + len(text) - len(text.lstrip())
    return (begin, begin + len(text.strip())) if text.strip() else (first, last)


def _most_context(counts: Sequence[int], stride: int) -> list[list[int]]:
    """Return for each window which of its context's tokens have more context around them there than in any other window.

    A token at place i of a window's n has min(i, n - 1 - i) + 0.01 n (Devlin et al. 2019, the script for SQuAD); of equals the first.

    Args:
        counts: How many tokens of the context each window has.
        stride: How many of them neighbouring windows share.
    """
    best: dict[int, tuple[float, int, int]] = {}
    for window, count in enumerate(counts):
        begin = window * (counts[0] - stride)
        for place in range(count):
            around = min(place, count - 1 - place) + 0.01 * count
            if begin + place not in best or around > best[begin + place][0]:
                best[begin + place] = (around, window, place)
    found: list[list[int]] = [[] for _ in counts]
    for _, (_, window, place) in sorted(best.items()):
        found[window].append(place)
    return found


def _places_of(span: tuple[int, int] | None, window: ContextWindow) -> tuple[int, int]:
    """Return the tokens that a span of characters begins and ends at, those of no answer where it is not whole in a window."""
    none = window.no_answer, window.no_answer
    if span is None:
        return none
    of_context = [(place, offsets) for place, offsets in enumerate(window.offsets) if offsets is not None]
    starts = [place for place, (first, last) in of_context if first <= span[0] < last]
    ends = [place for place, (first, last) in of_context if first < span[1] <= last]
    return (starts[0], ends[-1]) if starts and ends else none
