"""Two trainings for each seed: one as usual (MAP), and one of the same cost that collects SWAG. Both are kept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from question_sets import Row
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from swag_trainer import ChoiceSettings, MultipleChoiceMixin, SwagCallback, WeightPosterior, load_posterior, point_posterior
from swag_trainer.adapters.positions import longest_input
from swag_trainer.tasks.question_encoder import QuestionEncoder


class ChoiceTrainer(MultipleChoiceMixin, Trainer):
    """The Trainer with the loss of multiple choice."""


def new_model(seed: int, options: argparse.Namespace) -> PeftModel:
    """Return the language model with a new LoRA adapter, which the seed decides."""
    set_seed(seed)
    dtype = getattr(torch, options.dtype)
    how: dict[str, Any] = {"gguf_file": options.gguf_file} if options.gguf_file else {}
    if options.bits is not None:
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=options.bits == 4, load_in_8bit=options.bits == 8, bnb_4bit_compute_dtype=dtype
        )
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, **how)
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.05, target_modules=options.target_modules)
    return get_peft_model(base, lora)


def tokenizer_of(options: argparse.Namespace) -> PreTrainedTokenizerBase:
    """Return the language model's tokenizer."""
    where = {"gguf_file": options.gguf_file} if options.gguf_file else {}
    return AutoTokenizer.from_pretrained(options.model, **where)


def choice_settings(options: argparse.Namespace) -> ChoiceSettings:
    """Return how questions are put and scored; the tokenizer's chat template is used where it has one, unless the prompt is to be plain."""
    return ChoiceSettings(
        scoring=options.scoring, chat=False if options.plain_prompt else None, max_choices=options.max_choices
    )


def question_encoder(options: argparse.Namespace) -> QuestionEncoder:
    """Return what makes model inputs of questions, cut where the Trainer cuts them; of the model, its config.json is read."""
    tokenizer, where = tokenizer_of(options), {"gguf_file": options.gguf_file} if options.gguf_file else {}
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options.model, **where))
    return QuestionEncoder(tokenizer, choice_settings(options), max_length=longest_input(tokenizer, base))


def trained(kind: str, questions: list[Row], folder: Path, *, seed: int, options: argparse.Namespace) -> WeightPosterior:
    """Return the posterior of a training run, which an earlier command may have left in the folder.

    Args:
        kind: "map" for the last weights of a plain run, "swag" for the posterior of one that collects.
        questions: To train on.
        folder: Where it is saved. What is returned is what was saved.
        seed: Of the adapter's beginning and of the order of the questions.
        options: Of the command.
    """
    if not (folder / "swag_posterior.safetensors").exists():
        swag = SwagCallback()
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            save_strategy="no",
            report_to=[],
            seed=seed,
            gradient_checkpointing=options.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
        trainer = ChoiceTrainer(
            model=new_model(seed, options),
            args=arguments,
            train_dataset=questions,
            processing_class=tokenizer_of(options),
            choice_settings=choice_settings(options),
            callbacks=[swag] if kind == "swag" else [],
        )
        trainer.train()
        posterior = swag.posterior if kind == "swag" else point_posterior(trainer.model)
        posterior.save_pretrained(folder)
    return load_posterior(folder)
