"""Fine-tune a model with LoRA on labelled text, and save adapter, posterior and tokenizer in a folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from huggingface_hub.errors import HTTPError
from peft import get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.class_weights import balanced_weights, weighted_loss
from swag_trainer.cli.classifier import tokenised
from swag_trainer.cli.early_stopping import ResumableEarlyStopping
from swag_trainer.cli.files import prepared_outputs
from swag_trainer.cli.lora import lora_config
from swag_trainer.cli.paths import neighbour_hint
from swag_trainer.cli.resumable import ResumableInterrupt
from swag_trainer.cli.splits import balanced
from swag_trainer.cli.text_data import LabelledText, read_text
from swag_trainer.cli.train_mixture import train_mixture
from swag_trainer.cli.training_arguments import swag_callback, training_arguments
from swag_trainer.cli.training_interruption import SaveOnInterrupt
from swag_trainer.cli.training_options import TrainOptions
from swag_trainer.cli.training_order import ResumableOrder
from swag_trainer.cli.training_progress import TrainingProgress
from swag_trainer.cli.unfinished_run import PlannedRun, folder_of, mark_finished, marked_unfinished, plan
from swag_trainer.collection.callback import SwagCallback
from swag_trainer.errors import SwagError

Options = TrainOptions


def run(options: Options, out: TextIO) -> None:
    """Train once for each seed; mix the posteriors where they are the members of a mixture.

    Raises:
        SwagError: The data or the model cannot be used, or a folder has a posterior or an interrupted run already.
        ResumableInterrupt: Ctrl-C was pressed, and the run is saved.
    """
    if options.members is not None:
        train_mixture(options, out, train=_train_all)
        return
    seeds = options.run_seeds
    output = Path(options.output)
    _train_all(options, {seed: output if len(seeds) == 1 else folder_of(seed, options.output) for seed in seeds}, out)


def _train_all(options: Options, folders: Mapping[int, Path], out: TextIO) -> None:
    """Train each seed in its folder, but for those that are finished."""
    callbacks = [swag_callback(options) for _ in folders]  # checks its numbers before anything is loaded
    runs = plan(folders, options.of_the_run(), resume=options.resume, overwrite=options.overwrite)
    arguments = [training_arguments(options, each.folder, each.seed) for each in runs]
    for each in runs:
        if each.is_finished:
            sys.stderr.write(f"{each.folder}: finished already.\n")
    due = [(each, swag, args) for each, swag, args in zip(runs, callbacks, arguments, strict=True) if not each.is_finished]
    if not due:
        return
    with ExitStack() as outputs:
        for continued in (False, True):
            folders = [each.folder for each, _, _ in due if each.is_continued is continued]
            outputs.enter_context(prepared_outputs(posteriors=folders, overwrite=options.overwrite or continued))
        data = _Data.read(options)
        outputs.enter_context(marked_unfinished([each for each, _, _ in due], options.of_the_run()))
        interrupt = SaveOnInterrupt()
        for each, swag, args in due:
            if interrupt.requested:
                raise ResumableInterrupt(f"Interrupted before the run in {str(each.folder)!r} began.")
            examples = data.training_examples(options, each.seed if options.members is None else options.run_seeds[0])
            _train(options, data, examples, args, each, swag, interrupt)
            swag.posterior.save_pretrained(each.folder)
            data.tokenizer.save_pretrained(each.folder)
            mark_finished(each.folder)
            out.write(
                f"{each.folder}: {swag.num_collected} snapshots of {swag.posterior.layout.size} weights, trained on {len(examples)} "
                f"examples of {len(data.classes)} classes with seed {each.seed}\n"
            )


@dataclass(frozen=True, eq=False)
class _Data:
    """Text to train on and to evaluate on, and what it takes to tokenise it.

    Attributes:
        text: To train on.
        evaluation: To evaluate on while training; None where that was not asked for.
        classes: Their names, in the order of the logits.
        targets: Class numbers of the training text. Shape (N,).
        tokenizer: It truncates at the length of training, also in later commands, as it is saved with the adapter.
        shapes: The model without weights, for the number of its positions.
    """

    text: LabelledText
    evaluation: LabelledText | None
    classes: list[str]
    targets: np.ndarray
    tokenizer: Any
    shapes: nn.Module

    @classmethod
    def read(cls, options: Options) -> _Data:
        """Read the text, and the tokenizer of the base model.

        Raises:
            SwagError: One of them cannot be read, there are fewer than two classes, or the evaluation text has others.
        """
        text = read_text(options, options.split)
        classes = sorted(set(text.labels))
        if len(classes) < 2:
            raise SwagError(f"{text.name!r} ({text.split}) has {len(classes)} class(es); a classifier needs at least two.")
        evaluation = None if options.eval is None else read_text(options, options.eval)
        if evaluation is not None:
            evaluation.numbers(classes)
        tokenizer, shapes = _tokenizer_and_shapes(options.model)
        tokenizer.model_max_length = min(longest_input(tokenizer, shapes) or options.max_length, options.max_length)
        return cls(text, evaluation, classes, text.numbers(classes), tokenizer, shapes)

    def training_examples(self, options: Options, seed: int) -> list[dict[str, Any]]:
        """Return the examples to train on, or as many of them as were asked for, chosen by the seed."""
        chosen = range(len(self.targets))
        if options.train_rows is not None and options.train_rows < len(self.targets):
            chosen = balanced(self.targets, options.train_rows, seed).tolist()
        return tokenised(self.tokenizer, self.shapes, [self.text.texts[index] for index in chosen], self.targets[list(chosen)])

    def evaluation_examples(self) -> list[dict[str, Any]] | None:
        """Return the examples to evaluate on while training, if there are any."""
        if self.evaluation is None:
            return None
        return tokenised(self.tokenizer, self.shapes, self.evaluation.texts, self.evaluation.numbers(self.classes))


def _tokenizer_and_shapes(model: str) -> tuple[Any, nn.Module]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, HTTPError) as error:
        raise SwagError(
            f"The base model {model!r} cannot be loaded: it should be the name of a repository on the Hub, or a folder here that holds "
            f"config.json, weights and tokenizer.{neighbour_hint(model)} {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    if tokenizer.pad_token is None:  # decoders come without; what is masked out may be any token
        tokenizer.pad_token = tokenizer.eos_token
    with torch.device("meta"):
        return tokenizer, AutoModelForSequenceClassification.from_config(config)


def _train(
    options: Options,
    data: _Data,
    examples: list[dict[str, Any]],
    training: TrainingArguments,
    run: PlannedRun,
    swag: SwagCallback,
    interrupt: SaveOnInterrupt,
) -> None:
    """Train one run, from its beginning or from the checkpoint that it goes on from."""
    progress = TrainingProgress(swag, f"Seed {run.seed}" if len(options.run_seeds) > 1 else "Training")
    early = [] if options.patience is None else [ResumableEarlyStopping(options.patience)]
    weights = None
    if options.class_weights == "balanced":
        weights = balanced_weights(np.array([example["labels"] for example in examples]), len(data.classes))
    trainer = Trainer(
        model=_model(options, data, training.seed),
        args=training,
        train_dataset=examples,
        eval_dataset=data.evaluation_examples(),
        processing_class=data.tokenizer,
        compute_loss_func=None if weights is None else weighted_loss(weights),
        compute_metrics=None if options.eval is None else _accuracy,
        # The order matters: the bar counts what was collected, and an interruption ends the training in the middle of a save.
        callbacks=[*early, swag, progress, ResumableOrder(run.checkpoint), interrupt],
    )
    trainer.remove_callback(PrinterCallback)
    with interrupt.listening():
        try:
            trainer.train(resume_from_checkpoint=run.checkpoint)
        finally:
            progress.close()


def _model(options: Options, data: _Data, seed: int) -> nn.Module:
    """Return the base model with a new adapter, always the same for one seed."""
    set_seed(seed)
    base, info = AutoModelForSequenceClassification.from_pretrained(
        options.model,
        trust_remote_code=False,
        output_loading_info=True,
        num_labels=len(data.classes),
        id2label=dict(enumerate(data.classes)),
        label2id={label: index for index, label in enumerate(data.classes)},
        ignore_mismatched_sizes=True,
        **({} if options.dtype is None else {"dtype": options.dtype}),
    )
    if base.config.pad_token_id is None and data.tokenizer.pad_token_id is not None:
        base.config.pad_token_id = data.tokenizer.pad_token_id  # decoders look for the last token before the padding
    lora = lora_config(
        base,
        {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])},
        target_modules=options.target_modules,
        modules_to_save=options.modules_to_save,
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
    )
    return get_peft_model(base, lora)


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}
