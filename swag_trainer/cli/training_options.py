"""Options of `train`: data, model, LoRA, recipe, collection, evaluation, and what happens to a run that was interrupted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from swag_trainer.cli.devices import check_precision
from swag_trainer.cli.options import TextOptions
from swag_trainer.errors import SwagError
from swag_trainer.posterior.mixture import MAX_MEMBERS

DEFAULT_STEPS = 400
# The peak learning rate where none is given, by optimizer.
LEARNING_RATES = {"adamw": 5e-3, "sgd": 1.0}
# Options that change nothing about what a run computes: another value may continue it.
_NOT_OF_THE_RUN = {"config", "debug", "output", "overwrite", "resume", "seed", "seeds", "members", "dataset_name"}


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TextOptions):
    """The training recipe; its defaults are those of the demo.

    Raises:
        SwagError: A number out of range, a precision that there is not, or options that need another one or exclude each other.
    """

    mappings: ClassVar[tuple[str, ...]] = ("training",)
    sources: ClassVar[tuple[str, ...]] = ("model",)
    counts: ClassVar[tuple[str, ...]] = (
        "train_rows",
        "steps",
        "batch_size",
        "max_length",
        "lora_r",
        "lora_alpha",
        "snapshots",
        "every_steps",
        "save_steps",
        "eval_steps",
        "patience",
    )

    model: str = field(metadata={"help": "the base model: a name on the Hub or a folder"})
    output: str = field(
        metadata={
            "help": "folder for adapter, posterior and tokenizer; with several seeds or members, for a folder of each too"
        }
    )
    split: str = field(default="train", metadata={"help": "examples to train on"})
    train_rows: int | None = field(default=None, metadata={"help": "train on that many examples, balanced over the classes"})
    class_weights: Literal["none", "balanced"] = field(
        default="none",
        metadata={
            "help": "'balanced': classes count the same in the loss, however many examples they have; probabilities are then those for "
            "classes of one size"
        },
    )
    seed: int | None = field(default=None, metadata={"help": "of the run, and of the first of --members; default: 0"})
    seeds: list[int] | None = field(
        default=None, metadata={"help": "train once with each of these seeds: posteriors to compare, or to mix later"}
    )
    members: int | None = field(
        default=None,
        metadata={
            "help": "train that many members, with consecutive seeds, and save one mixture of them (MultiSWAG); torchrun or accelerate "
            "launch trains them at the same time"
        },
    )
    steps: int | None = field(default=None, metadata={"help": f"optimizer steps; default: {DEFAULT_STEPS}"})
    epochs: float | None = field(default=None, metadata={"help": "passes over the training examples, instead of --steps"})
    optimizer: Literal["adamw", "sgd"] = field(
        default="adamw",
        metadata={"help": "'sgd': with momentum .9 as a running mean of gradients; on small data its posteriors were better"},
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "peak learning rate; default: " + ", ".join(f"{rate:g} of {name}" for name, rate in LEARNING_RATES.items())
        },
    )
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
    final_weights: Literal["mean", "trained", "better"] = field(
        default="mean",
        metadata={
            "help": "weights in the adapter's file: 'trained' are the last ones, or with --eval the best; 'better' of both on --eval"
        },
    )
    eval: str | None = field(
        default=None,
        metadata={
            "help": "split to evaluate on while training, such as 'validation'; the weights with the lowest loss there are the best, which "
            "--final-weights trained saves"
        },
    )
    eval_steps: int | None = field(
        default=None, metadata={"help": "evaluate every so many steps; default: --save-steps, or a tenth of --steps"}
    )
    patience: int | None = field(
        default=None, metadata={"help": "stop after so many evaluations in a row without a lower loss; needs --eval"}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "precision of the base model, such as bfloat16; default: that of its checkpoint"}
    )
    training: str | None = field(
        default=None,
        metadata={
            "help": 'more of transformers\' TrainingArguments, as JSON: \'{"bf16": true, "gradient_accumulation_steps": 4}\''
        },
    )
    save_steps: int | None = field(
        default=None,
        metadata={
            "help": "save a checkpoint every so many steps, from which --resume goes on after a crash; Ctrl-C saves one too"
        },
    )
    resume: bool = field(
        default=False, metadata={"help": "go on with an interrupted run, given the same options; begin where there is none"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace a posterior that is in the folder already, and the checkpoints beside it"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "epochs", "every_epochs"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise SwagError(f"--{name.replace('_', '-')} must be a number above 0, got {value}.")
        if not 0 <= self.lora_dropout < 1:
            raise SwagError(f"--lora-dropout is a probability below 1, got {self.lora_dropout}.")
        chosen = [f"--{name}" for name in ("seeds", "members", "seed") if getattr(self, name) is not None]
        if "--seeds" in chosen[:1] and len(chosen) > 1:
            raise SwagError(
                f"--seeds trains posteriors to compare, each in a folder of its own, and does not go with {chosen[1]}: for one mixture of "
                "consecutive seeds give --members, and --seed for the first."
            )
        if self.members is not None and not 2 <= self.members <= MAX_MEMBERS:
            raise SwagError(f"--members is the number of members of a mixture, 2 to {MAX_MEMBERS}, got {self.members}.")
        twice = next((seed for seed in self.run_seeds if self.run_seeds.count(seed) > 1), None)
        if twice is not None:
            raise SwagError(f"--seeds names {twice} twice, and each seed has one folder.")
        for seed in self.run_seeds:
            if not 0 <= seed < 2**32:
                raise SwagError(f"--{'seeds' if self.seeds else 'seed'}: seeds are numbers from 0 to {2**32 - 1}, got {seed}.")
        if self.dtype is not None:
            check_precision(self.dtype)
        if self.steps is not None and self.epochs is not None:
            raise SwagError("--steps and --epochs both set the length of the run; give one of them.")
        if self.eval is None and (self.patience is not None or self.eval_steps is not None):
            raise SwagError(
                f"--{'patience' if self.patience is not None else 'eval-steps'} needs --eval SPLIT, the examples to evaluate."
            )
        if self.eval is not None and self.eval == self.split:
            raise SwagError(f"--eval and --split are both {self.eval!r}: weights are not chosen on what they were trained on.")
        if self.eval is not None and self.save_steps is not None and self.save_steps % (self.eval_steps or self.save_steps):
            raise SwagError(
                f"--save-steps must be a multiple of --eval-steps, so that the best weights are saved; got {self.save_steps} and "
                f"{self.eval_steps}."
            )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        return LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    @property
    def run_seeds(self) -> list[int]:
        """The seed of each training."""
        if self.seeds is not None:
            return self.seeds
        first = self.seed or 0
        return list(range(first, first + (self.members or 1)))

    def of_the_run(self) -> dict[str, Any]:
        """Return the options that decide what a run computes, as JSON values: a run that goes on has the same."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _NOT_OF_THE_RUN}
