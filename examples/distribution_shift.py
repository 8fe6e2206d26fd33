"""Does the model notice text it was not trained for? Entropy and mutual information of foreign questions and of mistyped ones.

    python examples/distribution_shift.py
    python examples/distribution_shift.py --dataset clinc/clinc_oos:plus --train-rows 1500

Foreign rows belong to no class. Mistyped rows are the test split with some letters swapped, dropped, doubled or replaced; they keep their
class, so a model that is less sure of them should also be wrong more often.
"""

from __future__ import annotations

import argparse
import string
import tempfile

import numpy as np
from quickstart import DATA, bundled_minilm, console, quiet_libraries, run, tokenised, train
from rich.table import Table
from text_data import TextTask, read_task
from transformers import AutoTokenizer

from swag_trainer import MonteCarloPredictor, Predictive, SwagCallback
from swag_trainer.metrics import Interval, accuracy, auroc, bootstrap_interval

SCORES = ("entropy", "mutual_information", "aleatoric")
TYPOS = (0.05, 0.15)  # shares of the letters


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    task = read_task(arguments.dataset, foreign_source=arguments.foreign).subset(
        arguments.train_rows, None, seed=arguments.seed
    )
    answers = answered(task, arguments)
    console.print(averages(answers, task))
    console.print(told_apart(answers, arguments.resamples))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset", default=str(DATA), help="a Hub name (name or name:config), a .jsonl or .csv file, or a folder"
    )
    parser.add_argument(
        "--foreign", help="a second source whose out-of-scope rows, or all where none is marked, play the foreign questions"
    )
    parser.add_argument("--train-rows", type=int, help="train on that many rows, balanced over the classes")
    parser.add_argument("--model", default=str(bundled_minilm()), help="a Hub name or a folder")
    parser.add_argument("--target-modules", nargs="+", default=["query", "value"], help="the layers that get LoRA")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the posterior's covariance")
    parser.add_argument("--num-samples", type=int, default=10, help="draws")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap intervals")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def answered(task: TextTask, arguments: argparse.Namespace) -> dict[str, Predictive]:
    """Train on the task and answer its test split, the same with typos, and the foreign rows."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    swag = SwagCallback()
    rows = tokenised(task.texts["train"], tokenizer, task.targets["train"])
    with tempfile.TemporaryDirectory() as folder:
        model = train(task, rows, tokenizer, arguments, folder, arguments.seed, callbacks=[swag])
    predictor = MonteCarloPredictor(
        model,
        swag.posterior,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        scale=arguments.scale,
        progress=False,
    )
    generator = np.random.default_rng(arguments.seed)
    texts = {"test split": task.texts["test"]}
    for share in TYPOS:
        texts[typo_name(share)] = [mistyped(text, share, generator) for text in task.texts["test"]]
    if task.foreign:
        texts["foreign"] = task.foreign
    return {name: predictor.predict(tokenised(part, tokenizer)) for name, part in texts.items()}


def typo_name(share: float) -> str:
    return f"{share:.0%} typos"


def mistyped(text: str, share: float, generator: np.random.Generator) -> str:
    """Mistype each letter with probability ``share``: swapped with the next character, dropped, doubled or replaced."""
    result = list(text)
    for place, character in enumerate(text):
        if character.isalpha() and generator.random() < share:
            kind = generator.integers(4)
            if kind == 0 and place + 1 < len(text):
                result[place], result[place + 1] = result[place + 1], result[place]
            else:
                other = string.ascii_lowercase[generator.integers(26)]
                result[place] = ("", "", character * 2, other)[kind]
    return "".join(result)


def averages(answers: dict[str, Predictive], task: TextTask) -> Table:
    table = Table("rows", "accuracy", *(f"{score} (nats)".replace("_", " ") for score in SCORES))
    table.title = f"{task.name}: means over the rows, with {answers['test split'].num_draws[0]} draws"
    for name, predictive in answers.items():
        right = "-" if name == "foreign" else f"{accuracy(predictive.probabilities, task.targets['test']):.3f}"
        table.add_row(name, right, *(f"{getattr(predictive, score).mean():.3f}" for score in SCORES))
    return table


def told_apart(answers: dict[str, Predictive], num_resamples: int) -> Table:
    """AUROC of each score: how often a shifted row scores higher than a row of the test split; 0.5 is chance."""
    table = Table("shifted rows", *(score.replace("_", " ") for score in SCORES))
    table.title = "AUROC against the test split, 95 % bootstrap intervals"
    for name in list(answers)[1:]:
        intervals = (shift_interval(answers["test split"], answers[name], score, num_resamples) for score in SCORES)
        table.add_row(name, *(f"{each.value:.3f} [{each.low:.3f}, {each.high:.3f}]".replace("[", r"\[") for each in intervals))
    return table


def shift_interval(known: Predictive, shifted: Predictive, score: str, num_resamples: int) -> Interval:
    """AUROC with its interval; known and shifted rows are resampled each among themselves."""
    values = np.concatenate([getattr(known, score), getattr(shifted, score)])
    is_shifted = np.arange(len(values)) >= len(known)

    def metric(scores: np.ndarray, flags: np.ndarray) -> float:
        return auroc(scores[~flags], scores[flags])

    return bootstrap_interval(metric, values, is_shifted, num_resamples=num_resamples, strata=is_shifted)


if __name__ == "__main__":
    run(main)
