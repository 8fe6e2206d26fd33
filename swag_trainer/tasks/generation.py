"""Text generation by a causal language model: what it can be asked, and why it has no classes to tune or to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from swag_trainer.errors import SwagError
from swag_trainer.tasks.base import Link, Task


class TextGeneration(Task):
    """Texts, token by token.

    Its events would be tokens, and the classes of each the whole vocabulary. `swag_trainer.TextGenerator` reduces these while it scores or
    generates; what keeps the probabilities of every draw, event and class (`MonteCarloPredictor`, `tune`, measurements) refuses the task.
    """

    name: ClassVar[str] = "swag-text-generation"
    hub_tag: ClassVar[str] = "text-generation"
    auto_model: ClassVar[type] = AutoModelForCausalLM
    head: ClassVar[str | tuple[str, ...] | None] = ("ForCausalLM", "LMHeadModel")
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"

    def for_model(self, model: nn.Module) -> NoReturn:
        """Refuse a predictor of classes."""
        refuse_classes()

    def read(self, outputs: Any, batch: Mapping[str, Tensor]) -> NoReturn:
        """Refuse a predictor of classes."""
        refuse_classes()

    def link(self, config: Any) -> Link:
        """Refuse what is for classes: tuning, fitting, measurements, OOD scores."""
        refuse_classes()

    def labels(self, rows: Sequence[Mapping[str, Any]], num_labels: int) -> np.ndarray:
        """Refuse what is for classes."""
        refuse_classes()


def refuse_classes() -> NoReturn:
    """Say that text generation has no classes to average, tune or measure, and what there is instead.

    Raises:
        SwagError: Always.
    """
    raise SwagError(
        f"{TextGeneration.name!r} has a vocabulary in the place of classes: MonteCarloPredictor, tune(), fit_posterior(), OOD scores and "
        "measurements keep the probabilities of every draw, example and class, which for 10 draws, 10,000 tokens and a vocabulary of 50,000 "
        "would be 40 GB. Score texts token by token with swag_trainer.TextGenerator(model, posterior), or with the method score() of "
        f'pipeline("{TextGeneration.name}", model=...): the mean of its log-probabilities is the NLL. To choose between answers to a '
        "question, train with swag_trainer.MultipleChoiceMixin: that task has classes."
    )


def check_causal_language_model(base: Any, task: str) -> None:
    """Do nothing if a model predicts the next token of a text.

    Args:
        base: The model under the adapter.
        task: The name of the task, for the message.

    Raises:
        SwagError: It has no head for tokens, or an encoder besides its decoder.
    """
    head = getattr(base, "get_output_embeddings", lambda: None)()
    if head is None or getattr(getattr(base, "config", None), "is_encoder_decoder", False) or not base.can_generate():
        raise SwagError(
            f"The task {task!r} needs a causal language model, such as AutoModelForCausalLM loads, got {type(base).__name__}."
        )
