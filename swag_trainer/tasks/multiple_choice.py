"""Multiple choice by a causal language model: probabilities of the choices of a question, by letters or by the choices' own texts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.tasks.base import Link, Task
from swag_trainer.tasks.choice_settings import ChoiceSettings
from swag_trainer.tasks.generation import check_causal_language_model
from swag_trainer.tasks.question_encoder import LETTER, PRESENT
from swag_trainer.tasks.right_choices import right_choices
from swag_trainer.tasks.shared_prompt import (
    CHOICE,
    Mask,
    attended,
    mask_for,
    mean_log_probabilities,
    num_positions,
    predicted_from,
    separate,
    tree_inputs,
)


class MultipleChoice(Task):
    """Questions with one event each, whose classes are the choices.

    With ``scoring="letters"`` the logits are those of the letters' tokens at the last position of the prompt. With "answers" they are
    the mean log-probability per token of each choice's text, times the inverse temperature; the tokens of the question are computed
    once where the model's attention takes a tree mask, and once for each choice otherwise. A batch says by its columns which of the two
    it is for, see `swag_trainer.tasks.question_encoder.QuestionEncoder`.

    Args:
        settings: How questions are put and scored.
    """

    name: ClassVar[str] = "swag-multiple-choice"
    hub_tag: ClassVar[str] = "multiple-choice"
    auto_model: ClassVar[type] = AutoModelForCausalLM
    columns: ClassVar[frozenset[str]] = frozenset({CHOICE, LETTER, PRESENT})
    row_columns: ClassVar[frozenset[str]] = frozenset({LETTER, PRESENT})
    pads_anywhere: ClassVar[bool] = True

    def __init__(self, settings: ChoiceSettings | None = None) -> None:
        self.settings = settings or ChoiceSettings()
        self._parameters: set[str] = set()
        self._mask: Mask | None = None
        self._dtype = torch.float32
        self._window: int | None = None

    def configured(self, settings: Mapping[str, Any]) -> Task:
        """Return the task with the settings in a posterior's record."""
        return MultipleChoice(ChoiceSettings.from_record(settings))

    def for_model(self, model: nn.Module) -> MultipleChoice:
        """Return the task for a PEFT causal language model: with "answers" a small forward asks whether its attention takes a tree mask.

        Raises:
            SwagError: The model is no causal language model.
        """
        base: Any = base_model(adapted_model(model))
        check_causal_language_model(base, self.name)
        bound = copy.copy(self)
        bound._parameters = set(inspect.signature(base.forward).parameters)
        bound._dtype, bound._window = base.dtype, _window(base.config)
        bound._mask = mask_for(model, base, bound._parameters) if self.settings.scoring == "answers" else None
        return bound

    def constants(self, model: nn.Module) -> Mapping[str, Any]:
        """Return that no keys and values are kept: they are not read."""
        return {"use_cache": False} if "use_cache" in self._parameters else {}

    def inputs(self, batch: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Return tokens, mask and positions, and from where on logits are needed."""
        if CHOICE not in batch:
            return self._prompts(batch)
        if self._takes_tree(batch):
            assert self._mask is not None
            inputs: dict[str, Any] = dict(tree_inputs(batch, self._mask, self._dtype))
        else:
            batch, _, _ = separate(batch, batch[PRESENT].shape[1])
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        first = int(predicted_from(batch)[batch[CHOICE] > 0].min())
        return inputs | self._last(batch["input_ids"].shape[1] - first)

    def read(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the choices. Shape (B, C); of a choice that a question does not have, any."""
        logits = outputs["logits"]
        if CHOICE not in batch:
            places = _last_attended(batch) - batch["input_ids"].shape[1] + logits.shape[1]
            at_end = logits[torch.arange(len(logits), device=logits.device), places]
            return at_end.gather(1, batch[LETTER].clamp_min(0))
        num_choices, scale = batch[PRESENT].shape[1], self.settings.inverse_temperature
        if self._takes_tree(batch):
            return scale * mean_log_probabilities(logits, batch, num_choices)
        rows, trees, places = separate(batch, num_choices)
        scores = mean_log_probabilities(logits, rows, 1)[:, 0]
        return scale * scores.new_zeros(len(batch[CHOICE]), num_choices).index_put((trees, places), scores)

    def missing(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which choices a question does not have. Shape (B, C), bool."""
        return batch[PRESENT] == 0 if CHOICE in batch else batch[LETTER] < 0

    def link(self, config: Any) -> Link:
        """Return "softmax": one choice is right."""
        return "softmax"

    def num_classes(self, config: Any) -> int:
        """Return how many choices a question has at most."""
        return self.settings.max_choices

    def labels(self, rows: Sequence[Mapping[str, Any]], num_labels: int) -> np.ndarray:
        """Return the places of the right choices, from 0, in the column "labels". Shape (N,), int64.

        Raises:
            SwagError: A row has none, or one that is no choice of its question.
        """

        def count(row: Mapping[str, Any]) -> int:
            present = row[PRESENT] if PRESENT in row else [token >= 0 for token in row.get(LETTER, ())]
            return sum(map(int, present))

        return right_choices(rows, num_labels, count)

    def _prompts(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the model is given to read letters at the end of each prompt; a prompt's positions begin behind padding on its left."""
        mask = attended(batch)
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": mask.long()}
        if not bool(mask[:, 0].all()) and "position_ids" in self._parameters:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
        return inputs | self._last(batch["input_ids"].shape[1] - int(_last_attended(batch).min()))

    def _last(self, count: int) -> dict[str, int]:
        return {"logits_to_keep": count} if "logits_to_keep" in self._parameters else {}

    def _takes_tree(self, batch: Mapping[str, Tensor]) -> bool:
        return self._mask is not None and (self._window is None or num_positions(batch) <= self._window)


def _last_attended(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the index of the last token of each text. Shape (B,)."""
    mask = attended(batch)
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)


def _window(config: Any) -> int | None:
    """Return over how many positions some layer's attention reaches; None without a limit. A tree mask has no such limit."""
    text = config.get_text_config()
    sizes = [getattr(text, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size")]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)
