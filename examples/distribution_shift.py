"""Detection of distribution shift: entropy and mutual information of out-of-distribution questions and of mistyped ones.

    python examples/distribution_shift.py
    python examples/distribution_shift.py --dataset clinc/clinc_oos:plus --train-rows 1500

Out-of-distribution (OOD) examples belong to no class. Mistyped examples are the test split with some letters swapped, dropped, doubled or
replaced; they keep their class, so a model that is less certain of them should also be wrong more often.
"""

from __future__ import annotations

import argparse
import string
import tempfile

import numpy as np
from quickstart import console, quiet_libraries, run, tokenised, train
from rich.table import Table
from text_data import TextTask, read_task, recipe_parser
from transformers import AutoTokenizer

from swag_trainer import MonteCarloPredictor, Predictive, SwagCallback
from swag_trainer.metrics import Interval, accuracy, auroc, bootstrap_interval

SCORES = ("entropy", "mutual_information", "aleatoric")
TYPOS = (0.05, 0.15)  # fractions of the letters


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    task = read_task(arguments.dataset, ood_source=arguments.ood).subset(arguments.train_rows, None, seed=arguments.seed)
    predictions = predicted(task, arguments)
    console.print(averages(predictions, task))
    console.print(detection(predictions, arguments.resamples))


def parse_arguments() -> argparse.Namespace:
    parser = recipe_parser(__doc__)
    parser.add_argument("--ood", help="another source of out-of-distribution text, if the data set has none")
    parser.add_argument("--train-rows", type=int, help="train on that many examples, balanced over the classes")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the posterior's covariance")
    parser.add_argument("--num-samples", type=int, default=10, help="number of draws")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap intervals")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def predicted(task: TextTask, arguments: argparse.Namespace) -> dict[str, Predictive]:
    """Train on the task and predict its test split, the same with typos, and the out-of-distribution examples."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    swag = SwagCallback()
    rows = tokenised(task.texts["train"], tokenizer, task.targets["train"])
    with tempfile.TemporaryDirectory() as folder:
        model = train(task, rows, tokenizer, arguments, folder, arguments.seed, callbacks=[swag]).model.eval()
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
    for fraction in TYPOS:
        texts[typo_name(fraction)] = [mistyped(text, fraction, generator) for text in task.texts["test"]]
    if task.ood:
        texts["OOD"] = task.ood
    return {name: predictor.predict(tokenised(part, tokenizer)) for name, part in texts.items()}


def typo_name(fraction: float) -> str:
    return f"{fraction:.0%} typos"


def mistyped(text: str, fraction: float, generator: np.random.Generator) -> str:
    """Mistype each letter with probability ``fraction``: swapped with the next character, dropped, doubled or replaced."""
    result = list(text)
    for place, character in enumerate(text):
        if character.isalpha() and generator.random() < fraction:
            kind = generator.integers(4)
            if kind == 0 and place + 1 < len(text):
                result[place], result[place + 1] = result[place + 1], result[place]
            else:
                other = string.ascii_lowercase[generator.integers(26)]
                result[place] = ("", "", character * 2, other)[kind]
    return "".join(result)


def averages(predictions: dict[str, Predictive], task: TextTask) -> Table:
    table = Table("examples", "accuracy", *(f"{score} (nats)".replace("_", " ") for score in SCORES))
    table.title = f"{task.name}: means over the examples, with {predictions['test split'].num_draws[0]} draws"
    for name, predictive in predictions.items():
        right = "-" if name == "OOD" else f"{accuracy(predictive.probabilities, task.targets['test']):.3f}"
        table.add_row(name, right, *(f"{getattr(predictive, score).mean():.3f}" for score in SCORES))
    return table


def detection(predictions: dict[str, Predictive], num_resamples: int) -> Table:
    """Return the AUROC of each score: how often a shifted example scores higher than one of the test split; 0.5 is chance."""
    table = Table("shifted examples", *(score.replace("_", " ") for score in SCORES))
    table.title = "AUROC against the test split, 95 % bootstrap intervals"
    for name in list(predictions)[1:]:
        intervals = (shift_interval(predictions["test split"], predictions[name], score, num_resamples) for score in SCORES)
        table.add_row(name, *(f"{each.value:.3f} [{each.low:.3f}, {each.high:.3f}]".replace("[", r"\[") for each in intervals))
    return table


def shift_interval(inside: Predictive, shifted: Predictive, score: str, num_resamples: int) -> Interval:
    """Return the AUROC with its interval; unshifted and shifted examples are resampled separately."""
    values = np.concatenate([getattr(inside, score), getattr(shifted, score)])
    is_shifted = np.arange(len(values)) >= len(inside)

    def metric(scores: np.ndarray, flags: np.ndarray) -> float:
        return auroc(scores[~flags], scores[flags])

    return bootstrap_interval(metric, values, is_shifted, num_resamples=num_resamples, strata=is_shifted)


if __name__ == "__main__":
    run(main)
