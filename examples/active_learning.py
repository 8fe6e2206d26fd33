"""Active learning: examples to label next chosen at random, by entropy, or by mutual information.

    python examples/active_learning.py
    python examples/active_learning.py --dataset clinc/clinc_oos:plus --first-rows 300 --rows-per-round 150
    python examples/active_learning.py --posterior mixture --members 3 --strategies random "mutual information"

Starts with few labelled examples, and in each round labels as many more: at random, those with the highest entropy, those with the highest
mutual information, or drawn with probabilities in proportion to it (Kirsch et al. 2023, arXiv:2106.12059), as the highest ones are often
alike. Every model is trained anew on all examples labelled so far; the first one is shared. LoRA sits in the last two layers only; 45
trainings take about half an hour on one core.

The posterior that predicts and chooses is SWAG's, a mixture of SWAG posteriors of several trainings (MultiSWAG), or Laplace's over the head
around the mean of SWAG.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator

import numpy as np
import pandas as pd
from datasets import Dataset
from quickstart import console, quiet_libraries, run, tokenised, train
from rich.table import Table
from scipy.stats import t as student
from text_data import TextTask, read_task, recipe_parser
from transformers import AutoTokenizer

from swag_trainer import MonteCarloPredictor, PosteriorMixture, Predictive, SwagCallback, fit_posterior
from swag_trainer.metrics import accuracy, negative_log_likelihood

STRATEGIES = ("random", "entropy", "mutual information", "drawn by mutual information")
POSTERIORS = ("swag", "mixture", "laplace-head")
LAST_TWO_LAYERS = [f"layer.{layer}.attention.self.{name}" for layer in (4, 5) for name in ("query", "value")]
# Nothing is held out to choose it by; held-out examples chose 10 to 316 in 12 of the 25 runs of benchmarks/study.
HEAD_PRECISION = 30.0
Curve = list[dict[str, float]]  # accuracy and NLL after each round


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    task = read_task(arguments.dataset)
    console.print(f"{len(task.labels)} classes, {len(task.texts['train'])} examples to choose from, {arguments.seeds} seeds.")
    curves = [one_seed(task, arguments, seed) for seed in range(arguments.seeds)]
    console.print(as_table(task, curves, arguments))
    for strategy in [strategy for strategy in arguments.strategies if strategy != "random"]:
        for metric in ("accuracy", "NLL"):
            console.print(compared_with_random(curves, strategy, metric))


def parse_arguments() -> argparse.Namespace:
    parser = recipe_parser(__doc__, target_modules=LAST_TWO_LAYERS, steps=200)
    parser.add_argument("--first-rows", type=int, default=30, help="labelled at the start, balanced over the classes")
    parser.add_argument("--rows-per-round", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pool", type=int, default=200, help="unlabelled examples that a round looks at, drawn at random")
    parser.add_argument("--test-rows", type=int, default=200, help="examples of the test split to measure on")
    parser.add_argument("--num-samples", type=int, default=8, help="number of draws")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--posterior", choices=POSTERIORS, default="swag", help="of what predicts and chooses")
    parser.add_argument("--members", type=int, default=3, help="trainings of each mixture")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), help="'random' among them")
    arguments = parser.parse_args()
    if "random" not in arguments.strategies:
        parser.error("--strategies needs 'random', with which the others are compared.")
    return arguments


def one_seed(task: TextTask, arguments: argparse.Namespace, seed: int) -> dict[str, Curve]:
    """Follow every strategy from the same first rows, and measure the model after each round."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = tokenised(task.texts["train"], tokenizer, task.targets["train"])
    test = tokenised(task.texts["test"], tokenizer, task.targets["test"])
    test = test.shuffle(seed=0).select(range(min(arguments.test_rows, len(test))))
    first = first_rows(task, arguments.first_rows, seed)

    start = fitted(task, rows.select(first), tokenizer, arguments, seed)
    start_metrics = metrics(start, test)
    curves = {}
    for strategy in arguments.strategies:
        generator = np.random.default_rng([seed, 1])  # the same pools and the same random numbers for every strategy
        choice_generator = np.random.default_rng([seed, 2])
        labelled, predictor, curve = first, start, [start_metrics]
        for _ in range(arguments.rounds):
            unlabelled = generator.permutation(np.setdiff1d(np.arange(len(rows)), labelled))
            pool = unlabelled[: arguments.pool]
            picked = chosen(strategy, predictor, rows.select(pool), arguments.rows_per_round, choice_generator)
            labelled = np.concatenate([labelled, pool[picked]])
            predictor = fitted(task, rows.select(labelled), tokenizer, arguments, seed)
            curve.append(metrics(predictor, test))
        curves[strategy] = curve
        last = curve[-1]
        console.print(
            f"seed {seed}, {strategy}: accuracy {last['accuracy']:.3f}, NLL {last['NLL']:.3f} with {len(labelled)} examples"
        )
    return curves


def fitted(
    task: TextTask, labelled: Dataset, tokenizer: object, arguments: argparse.Namespace, seed: int
) -> MonteCarloPredictor:
    """Train on the labelled examples, as often as the posterior has members, and return what predicts with it."""
    count = arguments.members if arguments.posterior == "mixture" else 1
    posteriors = []
    for member in range(count):
        swag = SwagCallback()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), no_warnings():
            trainer = train(task, labelled, tokenizer, arguments, folder, seed + 1000 * member, callbacks=[swag])
        posteriors.append(swag.posterior)
    model, posterior = trainer.model.eval(), posteriors[0]
    if arguments.posterior == "mixture":
        posterior = PosteriorMixture.of(posteriors)
    elif arguments.posterior == "laplace-head":  # the callback left the mean in the model
        posterior = fit_posterior(model, labelled, method="laplace-head", prior_precision=HEAD_PRECISION, progress=False)
    num_samples = -(-arguments.num_samples // count) * count  # as many draws of each member
    return MonteCarloPredictor(model, posterior, num_samples=num_samples, seed=seed, progress=False)


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Silence the warning that the snapshots of short runs drift: it would be logged 45 times."""
    logger = logging.getLogger("swag_trainer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def first_rows(task: TextTask, count: int, seed: int) -> np.ndarray:
    """Return the places of a balanced first set of examples, which the seed decides."""
    order = np.random.default_rng([seed, 0]).permutation(len(task.targets["train"]))
    targets = task.targets["train"][order]
    turn = pd.Series(targets).groupby(targets).cumcount().to_numpy()
    return order[np.argsort(turn, kind="stable")[:count]]


def chosen(
    strategy: str, predictor: MonteCarloPredictor, pool: Dataset, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Return the places in the pool of the examples to label; the pool is in random order."""
    if strategy == "random":
        return np.arange(min(count, len(pool)))
    predictive: Predictive = predictor.predict(pool)
    score = predictive.entropy if strategy == "entropy" else predictive.mutual_information
    if strategy == "drawn by mutual information":  # the Gumbel trick: the highest of these are draws without replacement
        score = np.log(np.maximum(score, 1e-12)) + generator.gumbel(size=len(score))
    return np.argsort(-score, kind="stable")[:count]


def metrics(predictor: MonteCarloPredictor, test: Dataset) -> dict[str, float]:
    probabilities, labels = predictor.predict(test).probabilities, np.array(test["labels"])
    return {"accuracy": accuracy(probabilities, labels), "NLL": negative_log_likelihood(probabilities, labels)}


def as_table(task: TextTask, curves: list[dict[str, Curve]], arguments: argparse.Namespace) -> Table:
    counts = [arguments.first_rows + index * arguments.rows_per_round for index in range(arguments.rounds + 1)]
    table = Table("chosen by", "metric", *(f"{count} examples" for count in counts))
    table.title = f"{task.name}, test split: mean ± standard deviation over {len(curves)} seeds"
    for strategy in curves[0]:
        for metric in ("accuracy", "NLL"):
            values = np.array([[point[metric] for point in seed[strategy]] for seed in curves])
            spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.full(values.shape[1], np.nan)
            cells = (f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in zip(values.mean(axis=0), spread, strict=True))
            table.add_row(strategy, metric, *cells)
    return table


def compared_with_random(curves: list[dict[str, Curve]], strategy: str, metric: str) -> str:
    """Describe whether a strategy beats random choice after the last round: seed by seed, with a 95 % interval (Student's t)."""
    better = np.array([seed[strategy][-1][metric] - seed["random"][-1][metric] for seed in curves])
    better = better if metric == "accuracy" else -better
    result = f"{strategy}, {metric}: better than random choice for {int((better > 0).sum())} of {len(better)} seeds"
    if len(better) < 2:
        return f"{result}; one seed shows nothing."
    half = student.ppf(0.975, len(better) - 1) * better.std(ddof=1) / len(better) ** 0.5
    low, high = better.mean() - half, better.mean() + half
    verdict = "better" if low > 0 else "worse" if high < 0 else "not significant"
    return f"{result}, by {better.mean():+.3f} on average, 95 % interval [{low:+.3f}, {high:+.3f}]: {verdict}."


if __name__ == "__main__":
    run(main)
