"""Multiple-choice questions as inputs of a language model: prompts, letters, tokens, and a data collator."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swag_trainer.errors import SwagError, shortened
from swag_trainer.tasks.chat_templates import chat_errors
from swag_trainer.tasks.choice_settings import ChoiceSettings
from swag_trainer.tasks.questions import LETTERS, Question
from swag_trainer.tasks.right_choices import are_answered
from swag_trainer.tasks.shared_prompt import CHOICE

logger = logging.getLogger(__name__)

LETTER, PRESENT = "letter_tokens", "present_choices"


class QuestionEncoder:
    """Makes model inputs of multiple-choice questions.

    Args:
        tokenizer: Of the language model.
        settings: How questions are put and scored.
        max_length: Most positions that the model takes; longer prompts lose tokens at their beginning. None without a limit.

    Attributes:
        settings: With the chat template and the prompt that are used.
        num_truncated: How many prompts were cut so far.

    Raises:
        SwagError: A letter is not one token of the tokenizer, or there is no chat template.
    """

    def __init__(self, tokenizer: Any, settings: ChoiceSettings | None = None, *, max_length: int | None = None) -> None:
        self.settings = (settings or ChoiceSettings()).resolved(tokenizer)
        self.num_truncated = 0
        self._tokenizer, self._limit = tokenizer, max_length
        self._head = [] if self.settings.chat else leading_tokens(tokenizer)
        self._letters = self._letter_tokens() if self.settings.scoring == "letters" else []

    def message(self, row: Mapping[str, Any]) -> str:
        """Return a question with its choices as a user puts it, without a chat template."""
        question = Question.from_row(row, max_choices=self.settings.max_choices)
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
        return str(self.settings.prompt).format(question=question.text, choices=listed)

    def prompt(self, row: Mapping[str, Any]) -> str:
        """Return the text that the model is given for a question, before its answer."""
        text = self.message(row)
        if not self.settings.chat:
            return text
        messages = [{"role": "user", "content": text}]
        with chat_errors():
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs for a question, and its ``labels`` if the right choice is known.

        Lists of numbers: ``input_ids``, ``attention_mask``; for letters `LETTER`, the letters' tokens, -1 for a choice that there is
        not; for answers `CHOICE` and `PRESENT`, 1 for each choice that there is.

        Raises:
            SwagError: The row is no question, or a choice is empty or does not fit into the model.
        """
        question = Question.from_row(row, max_choices=self.settings.max_choices)
        text, count = self.prompt(row), len(question.choices)
        prompt = self._encode(text)
        width = self.settings.max_choices
        if self.settings.scoring == "letters":
            ids = self._cut(prompt, 0)
            encoded: dict[str, Any] = {"input_ids": ids, LETTER: self._letters[:count] + [-1] * (width - count)}
        else:
            separator = self._separators(text)[0]
            answers = [self._continuation(text, prompt, separator + choice) for choice in question.choices]
            if not all(answers) or not all(map(str.strip, question.choices)):
                raise SwagError(f"The question {shortened(repr(question.text))} has a choice without a token.")
            prompt = self._cut(prompt, max(map(len, answers)))
            numbers = [0] * len(prompt) + [place for place, answer in enumerate(answers, 1) for _ in answer]
            ids = prompt + [token for answer in answers for token in answer]
            encoded = {"input_ids": ids, CHOICE: numbers, PRESENT: [1] * count + [0] * (width - count)}
        encoded["attention_mask"] = [1] * len(ids)
        return encoded if question.answer is None else encoded | {"labels": question.answer}

    def _letter_tokens(self) -> list[int]:
        """The token of each letter behind the prompt, with or without a leading space."""
        example = self.prompt({"question": "Which?", "choices": ["One", "Two"]})
        prompt, found = self._encode(example), {}
        for separator in self._separators(example):
            tokens = [
                self._continuation(example, prompt, separator + letter) for letter in LETTERS[: self.settings.max_choices]
            ]
            single = [token[0] for token in tokens if len(token) == 1 and token[0] != self._tokenizer.unk_token_id]
            if len(set(single)) == len(tokens):
                return single
            found[separator] = tokens
        shown = "; ".join(f"{separator + 'A'!r} to ... are {tokens}" for separator, tokens in found.items())
        raise SwagError(
            f"Each of the letters A to {LETTERS[self.settings.max_choices - 1]} must be one token of its own behind the prompt "
            f'{shortened(repr(example))}, with or without a leading space: {shortened(shown)}. Use scoring="answers", or another prompt.'
        )

    def _separators(self, prompt: str) -> tuple[str, str]:
        """What may stand between prompt and answer, the usual first."""
        return ("", " ") if self.settings.chat or prompt[-1:].isspace() else (" ", "")

    def _encode(self, text: str) -> list[int]:
        return [*self._head, *self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _continuation(self, text: str, prompt: list[int], continuation: str) -> list[int]:
        """The tokens of a text behind a prompt, as the two are tokenised together, where that leaves the prompt's tokens as they are."""
        together = self._encode(text + continuation)
        if together[: len(prompt)] == prompt:
            return together[len(prompt) :]
        return list(self._tokenizer(continuation, add_special_tokens=False)["input_ids"])

    def _cut(self, prompt: list[int], behind: int) -> list[int]:
        """Leave out the prompt's first tokens where it does not fit, but for those that the tokenizer puts in front of every text."""
        if self._limit is None or len(prompt) + behind <= self._limit:
            return prompt
        head = len(self._head)
        room = self._limit - behind - head
        if room < 1:
            raise SwagError(f"A choice has {behind} tokens, and the model takes {self._limit} with the question.")
        self.num_truncated += 1
        return [*self._head, *prompt[head:][-room:]]


class ChoiceCollator:
    """Makes a batch of multiple-choice questions, or of what `QuestionEncoder` returned for them.

    Args:
        tokenizer: Of the language model; it pads on its ``padding_side``.
        settings: How questions are put and scored.
        max_length: As for `QuestionEncoder`.

    Attributes:
        encoder: The `QuestionEncoder`.
    """

    def __init__(self, tokenizer: Any, settings: ChoiceSettings | None = None, *, max_length: int | None = None) -> None:
        self.encoder = QuestionEncoder(tokenizer, settings, max_length=max_length)
        self._on_the_left = tokenizer.padding_side == "left"
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._fill = {"input_ids": padding or 0}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the tensors of a batch, with ``labels`` of shape (B,) if the rows have them.

        Raises:
            SwagError: A row is no question, or some rows have an answer and others have none.
        """
        num_truncated = self.encoder.num_truncated
        encoded = [row if "input_ids" in row else self.encoder(row) for row in rows]
        if num_truncated == 0 < self.encoder.num_truncated:
            logger.warning(
                "A prompt is too long for the model, and its beginning was left out; the encoder's num_truncated counts them."
            )
        are_answered(encoded)
        names = [name for name in encoded[0] if all(name in row for row in encoded)]
        return {name: torch.tensor(self._padded(name, [row[name] for row in encoded])) for name in names}

    def _padded(self, name: str, values: list[Any]) -> list[Any]:
        if name not in ("input_ids", "attention_mask", CHOICE):
            return values
        width = max(map(len, values))
        filling = [[self._fill.get(name, 0)] * (width - len(value)) for value in values]
        if self._on_the_left:
            return [fill + list(value) for fill, value in zip(filling, values, strict=True)]
        return [list(value) + fill for fill, value in zip(filling, values, strict=True)]


def leading_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that a tokenizer puts in front of every text, such as the beginning of a sequence."""
    whole = list(tokenizer("A")["input_ids"])
    bare = list(tokenizer("A", add_special_tokens=False)["input_ids"])
    starts = (start for start in range(len(whole) - len(bare) + 1) if whole[start : start + len(bare)] == bare)
    return whole[: next(starts, 0)]
