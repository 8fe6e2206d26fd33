"""MultipleChoiceMixin: a Trainer whose model learns to choose between the answers to a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swag_trainer.adapters.gguf import as_dequantised
from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.adapters.positions import longest_input
from swag_trainer.errors import SwagError
from swag_trainer.tasks import mark
from swag_trainer.tasks.choice_pairs import ChoicePairCollator
from swag_trainer.tasks.choice_settings import ChoiceSettings
from swag_trainer.tasks.multiple_choice import MultipleChoice
from swag_trainer.tasks.multiple_choice_encoder import MultipleChoiceEncoder
from swag_trainer.tasks.question_encoder import ChoiceCollator

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

ChoiceTask = MultipleChoice | MultipleChoiceEncoder


class MultipleChoiceMixin(_Base):
    """Trains a Trainer's model by the cross-entropy of the right choice among the choices of its question.

    Put it in front of the Trainer's class::

        class ChoiceTrainer(MultipleChoiceMixin, Trainer):
            pass

        swag = SwagCallback()
        trainer = ChoiceTrainer(
            model=get_peft_model(AutoModelForCausalLM.from_pretrained(...), LoraConfig(task_type="CAUSAL_LM")),
            args=args,
            train_dataset=[{"question": "...", "choices": ["...", "..."], "answer": 1}, ...],
            processing_class=tokenizer,
            choice_settings=ChoiceSettings(scoring="answers"),
            callbacks=[swag],
        )

    The settings, with the prompt that they come to, go into the posterior's record, where "swag-multiple-choice" finds them. The
    predictions of ``evaluate`` and ``predict`` are the logits of the choices, minus infinity for those that a question does not have.
    ``args.remove_unused_columns`` becomes False, as the columns of a question are no arguments of the model.

    An encoder that `transformers.AutoModelForMultipleChoice` loads is trained in the same way, for "swag-multiple-choice-encoder"; of the
    settings it has ``max_choices`` alone. Its head belongs into ``modules_to_save``.

    Args:
        choice_settings: How questions are put and scored; default: ``ChoiceSettings()``.
        **kwargs: Of the Trainer. Default of ``data_collator``: `ChoiceCollator`, or `ChoicePairCollator` for an encoder, which need the
            tokenizer as ``processing_class``.

    Raises:
        SwagError: There is no tokenizer, the model is of another kind or has no adapter, a letter is not one token, or an encoder is given
            settings that it does not have.
    """

    def __init__(self, *args: Any, choice_settings: ChoiceSettings | None = None, **kwargs: Any) -> None:
        tokenizer = kwargs.get("processing_class")
        if tokenizer is None:
            raise SwagError(
                "MultipleChoiceMixin makes prompts for the tokenizer: pass processing_class=tokenizer to the Trainer."
            )
        model = kwargs.get("model", args[0] if args else None)
        if not isinstance(model, nn.Module):
            raise SwagError(
                "MultipleChoiceMixin needs the PEFT model itself: pass model=model to the Trainer, and no model_init."
            )
        as_dequantised(base_model(adapted_model(model)))
        task, collator = _task_and_collator(model, tokenizer, choice_settings)
        if kwargs.get("data_collator") is None:
            kwargs["data_collator"] = collator
        super().__init__(*args, **kwargs)
        other = "label_smoothing_factor" if self.args.label_smoothing_factor else "compute_loss_func"
        if self.args.label_smoothing_factor or getattr(self, "compute_loss_func", None) is not None:
            raise SwagError(
                f"MultipleChoiceMixin trains by the cross-entropy of the choices and does not use {other}: leave it out, or override "
                "compute_loss(), which can call choice_logits()."
            )
        self._choice_task = task.for_model(self.model)
        mark(base_model(adapted_model(self.model)), task.name, _settings_of(task))
        self.args.remove_unused_columns = False
        # The loss is a mean over the questions of a batch, and the Trainer divides it by the batches of a step.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean cross-entropy of a batch, and with ``return_outputs`` also ``{"logits": (B, C)}``."""
        if "labels" not in inputs:
            raise SwagError('A question to train or evaluate on needs the place of its right choice in "answer", from 0.')
        logits = choice_logits(self._choice_task, model, inputs)
        loss = cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Mapping[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return loss, logits of the choices and labels; of questions without an answer the logits alone."""
        if "labels" in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        with torch.no_grad():
            return None, choice_logits(self._choice_task, model, self._prepare_inputs(inputs)), None


def _task_and_collator(model: nn.Module, tokenizer: Any, settings: ChoiceSettings | None) -> tuple[ChoiceTask, Any]:
    limit = longest_input(tokenizer, model)
    if not type(base_model(adapted_model(model))).__name__.endswith(str(MultipleChoiceEncoder.head)):
        collator = ChoiceCollator(tokenizer, settings, max_length=limit)
        return MultipleChoice(collator.encoder.settings), collator
    settings = settings or ChoiceSettings()
    if settings != ChoiceSettings(max_choices=settings.max_choices):
        raise SwagError(
            "An encoder reads each choice with its question and has no prompt and no scoring: of ChoiceSettings it takes max_choices alone, "
            f"got {settings}."
        )
    return MultipleChoiceEncoder(settings.max_choices), ChoicePairCollator(tokenizer, settings.max_choices, max_length=limit)


def _settings_of(task: ChoiceTask) -> dict[str, Any]:
    return {"max_choices": task.max_choices} if isinstance(task, MultipleChoiceEncoder) else task.settings.as_record()


def choice_logits(task: ChoiceTask, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the logits of a batch of questions under a model's weights, for a loss of one's own. Shape (B, C), float32.

    Args:
        task: What `MultipleChoice.for_model`, or that of `MultipleChoiceEncoder`, returned.
        model: The model, which may be wrapped.
        batch: What `ChoiceCollator`, or `ChoicePairCollator`, returned.
    """
    outputs = model(**task.inputs(batch), **task.constants(model))
    return task.read(outputs, batch).float().masked_fill(task.missing(batch), -torch.inf)
