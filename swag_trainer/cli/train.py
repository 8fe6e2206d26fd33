"""Fine-tune a model with LoRA on labelled text, and save adapter, posterior and tokenizer in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.classifier import tokenised
from swag_trainer.cli.files import prepared_outputs
from swag_trainer.cli.lora import lora_config
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.splits import balanced
from swag_trainer.cli.text_data import read_text
from swag_trainer.collection.callback import SwagCallback
from swag_trainer.collection.schedule import Evenly, Every, Schedule
from swag_trainer.errors import SwagError


@dataclass(frozen=True, kw_only=True)
class Options(TextOptions):
    """The training recipe; its defaults are those of the demo."""

    mappings: ClassVar[tuple[str, ...]] = ("training",)
    counts: ClassVar[tuple[str, ...]] = (
        "train_rows",
        "steps",
        "batch_size",
        "max_length",
        "lora_r",
        "snapshots",
        "every_steps",
        "save_steps",
    )

    model: str = field(metadata={"help": "the base model: a name on the Hub or a folder"})
    output: str = field(
        metadata={"help": "folder for adapter, posterior and tokenizer; with several seeds, for a folder of each"}
    )
    split: str = field(default="train", metadata={"help": "examples to train on"})
    train_rows: int | None = field(default=None, metadata={"help": "train on that many examples, balanced over the classes"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "train once with each of these seeds"})
    steps: int = field(default=400, metadata={"help": "optimizer steps"})
    learning_rate: float = field(default=5e-3, metadata={"help": "peak learning rate"})
    batch_size: int = field(default=16, metadata={"help": "examples per step"})
    max_length: int = field(
        default=128, metadata={"help": "tokens of a text; longer ones are truncated, also in every later command"}
    )
    lora_r: int = field(default=8, metadata={"help": "rank of the LoRA matrices"})
    lora_alpha: int = field(default=16, metadata={"help": "their factor is alpha / r"})
    lora_dropout: float = field(default=0.1, metadata={"help": "dropout before the LoRA matrices"})
    target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "layers that get LoRA, or 'all-linear'; default: PEFT's choice for the architecture, else query and value of the "
            "attention"
        },
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "modules that train and are saved as a whole, beside the classifier; default: those that the checkpoint lacks"
        },
    )
    snapshots: int = field(default=30, metadata={"help": "weight vectors to collect, spread evenly"})
    every_steps: int | None = field(default=None, metadata={"help": "collect every so many steps instead"})
    every_epochs: float | None = field(default=None, metadata={"help": "collect every so many epochs instead"})
    start: float = field(default=0.3, metadata={"help": "fraction of the run before the first snapshot"})
    rank: int = field(default=20, metadata={"help": "deviations to keep; 0 for a diagonal covariance"})
    collection_learning_rate: str = field(
        default="hold",
        metadata={"help": "learning rate while collecting: a number, 'hold', or 'schedule' for the Trainer's own"},
    )
    final_weights: Literal["mean", "trained"] = field(default="mean", metadata={"help": "weights in the adapter's file"})
    dtype: str | None = field(
        default=None, metadata={"help": "precision of the base model, such as bfloat16; default: that of its checkpoint"}
    )
    training: str | None = field(
        default=None,
        metadata={
            "help": 'more of transformers\' TrainingArguments, as JSON: \'{"bf16": true, "gradient_accumulation_steps": 4}\''
        },
    )
    save_steps: int | None = field(default=None, metadata={"help": "save a checkpoint every so many steps"})
    overwrite: bool = field(default=False, metadata={"help": "replace a posterior that is in the folder already"})


def run(options: Options, out: TextIO) -> None:
    """Train once for each seed.

    Raises:
        SwagError: The data or the model cannot be used, or a folder has a posterior already.
    """
    seeds = options.seeds
    folders = [Path(options.output) if len(seeds) == 1 else Path(options.output) / f"seed-{seed}" for seed in seeds]
    callbacks = [_callback(options) for _ in seeds]  # checks its numbers before anything is loaded
    arguments = [_training_arguments(options, folder, seed) for seed, folder in zip(seeds, folders, strict=True)]
    with prepared_outputs(posteriors=folders, overwrite=options.overwrite):
        for seed, folder, swag, num_examples, num_classes in _trained(options, folders, callbacks, arguments):
            out.write(
                f"{folder}: {swag.num_collected} snapshots of {swag.posterior.layout.size} weights, trained on {num_examples} examples "
                f"of {num_classes} classes with seed {seed}\n"
            )


def _trained(
    options: Options, folders: list[Path], callbacks: list[SwagCallback], arguments: list[TrainingArguments]
) -> Iterator[tuple[int, Path, SwagCallback, int, int]]:
    """Train and save for each seed; yields the seed, its folder and callback, and how many examples and classes there were."""
    data = read_text(options, options.split)
    classes = sorted(set(data.labels))
    if len(classes) < 2:
        raise SwagError(f"{data.name!r} ({data.split}) has {len(classes)} class(es); a classifier needs at least two.")
    targets = data.numbers(classes)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    if tokenizer.pad_token is None:  # decoders come without; what is masked out may be any token
        tokenizer.pad_token = tokenizer.eos_token
    with torch.device("meta"):
        shapes = AutoModelForSequenceClassification.from_config(
            AutoConfig.from_pretrained(options.model, trust_remote_code=False)
        )
    # Saved with the adapter: later commands truncate at the length that the model was trained with.
    tokenizer.model_max_length = min(longest_input(tokenizer, shapes) or options.max_length, options.max_length)
    for seed, folder, swag, training in zip(options.seeds, folders, callbacks, arguments, strict=True):
        chosen = range(len(targets))
        if options.train_rows is not None and options.train_rows < len(targets):
            chosen = balanced(targets, options.train_rows, seed).tolist()
        rows = tokenised(tokenizer, shapes, [data.texts[index] for index in chosen], targets[list(chosen)])
        _train(options, classes, rows, tokenizer, training, swag)
        swag.posterior.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield seed, folder, swag, len(rows), len(classes)


def _callback(options: Options) -> SwagCallback:
    rate: Any = {"hold": "hold", "schedule": None}.get(options.collection_learning_rate, options.collection_learning_rate)
    if isinstance(rate, str) and rate != "hold":
        try:
            rate = float(rate)
        except ValueError as error:
            raise SwagError(f"--collection-learning-rate is a number, 'hold' or 'schedule', got {rate!r}.") from error
    schedule: Schedule = Evenly(snapshots=options.snapshots, start=options.start)
    if options.every_steps is not None or options.every_epochs is not None:
        schedule = Every(steps=options.every_steps, epochs=options.every_epochs, start=options.start)
    return SwagCallback(
        schedule,
        rank=options.rank,
        learning_rate=rate,
        final_weights=options.final_weights,
        low_precision="upcast",
        ood_features=True,
    )


def _training_arguments(options: Options, folder: Path, seed: int) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": options.steps,
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": options.batch_size,
        "seed": seed,
        "save_strategy": "no" if options.save_steps is None else "steps",
        "save_steps": options.save_steps or 500,
    }
    usual = {
        "warmup_steps": 0.06,
        "train_sampling_strategy": "group_by_length",
        "weight_decay": 0.0,
        "logging_strategy": "no",
        "report_to": [],
        "dataloader_pin_memory": False,
    }
    try:
        more = json.loads(options.training or "{}")
        if not isinstance(more, dict):
            raise ValueError("it is not a JSON object")
        taken = sorted(set(more) & set(settings))
        if taken:
            raise ValueError(f"{taken[0]!r} has an option of its own")
        return TrainingArguments(**settings, **{**usual, **more})
    except (TypeError, ValueError, ImportError) as error:
        raise SwagError(
            f"--training takes further TrainingArguments as a JSON object, got {options.training!r}: {error}"
        ) from error


def _train(
    options: Options, classes: list[str], rows: list[dict], tokenizer: Any, training: TrainingArguments, swag: SwagCallback
) -> None:
    set_seed(training.seed)
    base, info = AutoModelForSequenceClassification.from_pretrained(
        options.model,
        trust_remote_code=False,
        output_loading_info=True,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={label: index for index, label in enumerate(classes)},
        ignore_mismatched_sizes=True,
        **({} if options.dtype is None else {"dtype": options.dtype}),
    )
    if base.config.pad_token_id is None and tokenizer.pad_token_id is not None:
        base.config.pad_token_id = tokenizer.pad_token_id  # decoders look for the last token before the padding
    lora = lora_config(
        base,
        {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])},
        target_modules=options.target_modules,
        modules_to_save=options.modules_to_save,
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
    )
    model = get_peft_model(base, lora)
    Trainer(model=model, args=training, train_dataset=rows, processing_class=tokenizer, callbacks=[swag]).train()
