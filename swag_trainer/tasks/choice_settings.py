"""How multiple-choice questions are put to a language model and scored: the settings in a posterior's record."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, get_args

from swag_trainer.errors import SwagError, shortened
from swag_trainer.tasks.questions import LETTERS

Scoring = Literal["letters", "answers"]

# The default prompt for each scoring, without and with a chat template.
PROMPTS: Mapping[tuple[Scoring, bool], str] = {
    ("letters", False): "Question: {question}\n{choices}\nAnswer:",
    ("letters", True): "{question}\n{choices}\nAnswer with the letter of the right choice.",
    ("answers", False): "Question: {question}\nAnswer:",
    ("answers", True): "{question}",
}
_KINDS: Mapping[str, tuple[type, ...]] = {
    "scoring": (str,),
    "prompt": (str, NoneType),
    "chat": (bool, NoneType),
    "inverse_temperature": (int, float),
    "max_choices": (int,),
}


@dataclass(frozen=True)
class ChoiceSettings:
    """How multiple-choice questions are put to a language model and scored; it travels in the posterior's record.

    Attributes:
        scoring: "letters" for the probabilities of the letters A, B, ... after the prompt, "answers" for the mean log-probability per token
            of each choice's own text.
        prompt: A text with ``{question}`` and, to list the choices with their letters, ``{choices}``. With a chat template it is the user's
            message. None for `PROMPTS`.
        chat: Use the tokenizer's chat template; None: if it has one.
        inverse_temperature: What the mean log-probabilities of "answers" are multiplied by, > 0; `swag_trainer.tune` finds a temperature
            besides.
        max_choices: C, how many choices a question has at most.

    Raises:
        SwagError: A value is out of range, or the prompt lacks a place for the question.
    """

    scoring: Scoring = "letters"
    prompt: str | None = None
    chat: bool | None = None
    inverse_temperature: float = 1.0
    max_choices: int = 5

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and name != "chat"):
                raise SwagError(f"{name}={shortened(repr(value))} is no setting of multiple choice: it is of another type.")
        if self.scoring not in get_args(Scoring):
            raise SwagError(f"scoring must be one of {get_args(Scoring)}, got {self.scoring!r}.")
        if not 0 < self.inverse_temperature < float("inf"):
            raise SwagError(f"inverse_temperature must be finite and > 0, got {self.inverse_temperature}.")
        if self.inverse_temperature != 1 and self.scoring == "letters":
            raise SwagError(
                'inverse_temperature is for scoring="answers"; with letters pass temperature=... where you predict, or tune.'
            )
        if not 2 <= self.max_choices <= len(LETTERS):
            raise SwagError(f"max_choices must be from 2 to {len(LETTERS)}, got {self.max_choices}.")
        if self.prompt is not None:
            _check_prompt(self.prompt, self.scoring)

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all settings."""
        return [item.name for item in fields(cls)]

    @classmethod
    def from_record(cls, settings: Mapping[str, Any]) -> ChoiceSettings:
        """Return the settings in a posterior's record, which is untrusted input.

        Raises:
            SwagError: A setting is unknown, of another type or out of range.
        """
        for name, value in settings.items():
            if name not in _KINDS or type(value) not in _KINDS[name]:
                raise SwagError(f"The posterior's record states {name}={shortened(repr(value))} for multiple choice.")
        return cls(**settings)

    def changed(self, changes: Mapping[str, Any]) -> ChoiceSettings:
        """Return the settings with some of them changed. A prompt that is not among them must still fit the others.

        With another scoring only ``max_choices`` stays; with or without a chat template, a prompt of `PROMPTS` becomes the other one.

        Raises:
            SwagError: A value is out of range.
        """
        kept = self
        if changes.get("scoring", self.scoring) != self.scoring:
            kept = ChoiceSettings(max_choices=self.max_choices)
        elif changes.get("chat", self.chat) != self.chat and self.prompt in PROMPTS.values():
            kept = replace(self, prompt=None)
        return replace(kept, **changes)

    def as_record(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)

    def resolved(self, tokenizer: Any) -> ChoiceSettings:
        """Return the settings with the tokenizer's chat template and the default prompt in the place of None.

        Raises:
            SwagError: A chat template is asked for, and the tokenizer has none.
        """
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if self.chat and not has_template:
            raise SwagError("chat=True needs a tokenizer with a chat template, and this one has none. Leave chat out.")
        chat = has_template if self.chat is None else self.chat
        return replace(self, chat=chat, prompt=PROMPTS[self.scoring, chat] if self.prompt is None else self.prompt)


def _check_prompt(prompt: str, scoring: Scoring) -> None:
    needed = ("question", "choices") if scoring == "letters" else ("question",)
    try:
        fields = [field[1:] for field in string.Formatter().parse(prompt) if field[1] is not None]
    except ValueError as error:
        raise SwagError(f"The prompt {shortened(repr(prompt))} is not a format string: {error}.") from error
    places = {name for name, _, _ in fields}
    if not set(needed) <= places <= {"question", "choices"} or any(spec or conversion for _, spec, conversion in fields):
        raise SwagError(
            f"A prompt for {scoring} has {' and '.join('{' + name + '}' for name in needed)} as they are, and doubled braces for others; "
            f"got {shortened(repr(prompt))}."
        )
