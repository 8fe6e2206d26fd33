"""Multiple-choice questions, read from rows with the columns of the data sets on the Hub."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swag_trainer.errors import SwagError, shortened

# Columns of the right choice: its number, or its label among those of the choices.
ANSWER_NUMBERS, ANSWER_KEY = ("answer", "label", "labels"), "answerKey"

# What the choices of a question are called, in this order.
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Question:
    """A question, the texts of its choices, and the place of the right one from 0 where it is known."""

    text: str
    choices: Sequence[str]
    answer: int | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any], *, max_choices: int) -> Question:
        """Read ``question``, ``choices`` and ``answer`` of a row, also as OpenBookQA, ARC, CommonsenseQA and MMLU have them on the Hub.

        ``choices`` is a list of texts, or ``{"text": [...], "label": [...]}``; the right one is a number in ``answer``, ``label`` or
        ``labels``, or one of those labels in ``answerKey``, which are the letters A, B, ... for a list.

        Raises:
            SwagError: A column is missing or of another type; there are fewer than 2 choices or more than the settings allow.
        """
        text = question_text(row)
        choices, names = row.get("choices"), None
        if isinstance(choices, Mapping):
            choices, names = choices.get("text"), choices.get("label")
        if not isinstance(text, str) or not isinstance(choices, (list, tuple)) or not all(isinstance(c, str) for c in choices):
            raise SwagError(
                'A question is {"question": "...", "choices": ["...", "..."]}, with the place of the right choice from 0 in "answer" where '
                f"it is needed; got {shortened(repr(dict(row)))}."
            )
        if not 2 <= len(choices) <= max_choices:
            raise SwagError(
                f"The question {shortened(repr(text))} has {len(choices)} choices; from 2 to max_choices={max_choices} are possible."
            )
        key = row.get(ANSWER_KEY)
        if key not in (None, ""):
            names = list(LETTERS[: len(choices)]) if names is None else names
            if not isinstance(names, (list, tuple)) or len(names) != len(choices) or key not in names:
                raise SwagError(
                    f"The question {shortened(repr(text))} has {ANSWER_KEY}={shortened(repr(key))}, and its {len(choices)} choices the labels "
                    f"{shortened(repr(names))}; one of as many is needed."
                )
            return cls(text, choices, list(names).index(key))
        answer = next((row[name] for name in ANSWER_NUMBERS if row.get(name) is not None), None)
        if answer is not None and (isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices)):
            raise SwagError(
                f"The question {shortened(repr(text))} has the answer {answer!r}; a number from 0 to {len(choices) - 1} is needed."
            )
        return cls(text, choices, answer)


def question_text(row: Mapping[str, Any], default: Any = None) -> Any:
    """Return what stands in a row's column of the question, or the default where it has none."""
    return row.get("question", row.get("question_stem", default))
