"""Options of the paper's protocol, and the folder that keeps what was made with them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from question_sets import Row

from swag_trainer import SwagError
from swag_trainer.distributed import digest
from swag_trainer.posterior.atomic import write_bytes


def parse_arguments(arguments: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny random model and 64 questions, to see that all of it runs")
    parser.add_argument(
        "--model", default="meta-llama/Llama-2-7b-hf", help="a causal language model: a name on the Hub or a folder"
    )
    parser.add_argument("--gguf-file", help="the file in that repository or folder, if the model lies in one")
    parser.add_argument("--train", help="questions to train on, the last of them to fit temperatures to")
    parser.add_argument("--test", help="questions to measure on")
    parser.add_argument("--shifted", nargs="+", help="questions of other kinds")
    parser.add_argument("--train-limit", type=count, help="take that many questions to train and validate on, at most")
    parser.add_argument("--limit", type=count, help="take that many questions of each other set, at most")
    parser.add_argument("--shifted-limit", type=count, help="take that many of each shifted set instead")
    parser.add_argument(
        "--validation", type=count, default=100, help="how many of the training questions are for temperatures and tuning"
    )
    parser.add_argument("--scoring", choices=("letters", "answers"), default="letters")
    parser.add_argument("--max-choices", type=count, default=5, help="how many choices a question has at most")
    parser.add_argument("--plain-prompt", action="store_true", help="leave out the tokenizer's chat template")
    parser.add_argument("--target-modules", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantise the model so while it is loaded, by bitsandbytes")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="compute activations again to save memory")
    parser.add_argument("--steps", type=count, default=200)
    parser.add_argument("--batch-size", type=count, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--num-samples", type=count, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="paper-output")
    options = parser.parse_args(arguments)
    if len(set(options.seeds)) != len(options.seeds):
        parser.error("--seeds names one twice, which would be averaged as if it were two")
    if not options.small and not (options.train and options.test and options.shifted):
        parser.error("--train, --test and --shifted are needed, or --small")
    return options


def count(text: str) -> int:
    """Return a whole number of at least 1, as argparse takes it."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return number


def check_folder(options: argparse.Namespace, questions: Mapping[str, list[Row]]) -> None:
    """Refuse a folder that holds what other options or questions made: adapters and probabilities there are taken for these.

    Raises:
        SwagError: It holds a run with others, or is no folder.
    """
    own = {name: value for name, value in vars(options).items() if name not in ("output", "seeds")}
    if options.small:  # its model and questions are made anew, always the same
        own |= dict.fromkeys(("model", "train", "test", "shifted"))
    own["questions"] = {name: digest(json.dumps(each)) for name, each in questions.items()}
    file = Path(options.output, "options.json")
    if file.parent.exists() and not file.parent.is_dir():
        raise SwagError(f"--output {options.output} is a file; a folder is needed.")
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else own
    changed = sorted(name for name in {*own, *before} if own.get(name) != before.get(name))
    if changed:
        raise SwagError(
            f"{options.output} holds a run with other options: {', '.join(changed)}. Give another --output, or the same options to go on."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, (json.dumps(own, indent=1) + "\n").encode())


def published(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options for results that may be published: files and folders of this machine have their names alone."""

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(each) for each in value]
        return Path(value).name if isinstance(value, str) and Path(value).exists() else value

    return {name: named(value) for name, value in vars(options).items() if name != "output"}
