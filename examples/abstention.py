"""Abstention at a calibrated risk, and conformal prediction sets: their guarantees, and how they were kept.

    python examples/abstention.py
    python examples/abstention.py --dataset clinc/clinc_oos:plus --train-rows 1500 --risk 0.02

A model is trained, its posterior tuned on the validation split, saved and loaded by the pipeline, which then abstains. The test split,
which nothing was chosen on, shows whether the guarantees were kept.
"""

from __future__ import annotations

import argparse

import numpy as np
from quickstart import console, quiet_libraries, run, tokenised, train
from rich.table import Table
from text_data import TextTask, read_task, recipe_parser
from transformers import AutoTokenizer, pipeline

from swag_trainer import Sampling, SwagCallback, SwagError, SwagPosterior, tune

LEVEL = 0.9  # of the conformal sets


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    task = read_task(arguments.dataset).subset(
        arguments.train_rows, arguments.validation_rows, seed=arguments.seed, test_rows=arguments.test_rows
    )
    posterior = tuned_posterior(task, arguments)
    console.print(thresholds(posterior))
    classify = pipeline("swag-text-classification", model=arguments.output, batch_size=32)
    console.print(
        f"Measured on {len(task.texts['test'])} examples of the test split, and {len(task.ood)} that belong to no class:"
    )
    for sentence in (
        describe_abstaining(classify, task, risk=arguments.risk),
        describe_abstaining(classify, task, coverage=LEVEL),
        describe_sets(classify, task),
    ):
        console.print(f"* {sentence}")


def parse_arguments() -> argparse.Namespace:
    parser = recipe_parser(__doc__)
    parser.add_argument("--train-rows", type=int, help="train on that many examples, balanced over the classes")
    parser.add_argument("--validation-rows", type=int, help="tune on that many examples")
    parser.add_argument("--test-rows", type=int, help="measure on that many examples")
    parser.add_argument("--risk", type=float, default=0.05, help="largest fraction of wrong labels among those given")
    parser.add_argument(
        "--risk-level",
        type=float,
        default=0.9,
        help="probability of that guarantee; 0 for none, and a threshold that fits these examples",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="abstention-output")
    return parser.parse_args()


def tuned_posterior(task: TextTask, arguments: argparse.Namespace) -> SwagPosterior:
    """Train, tune, and save what the pipeline loads."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    data = {split: tokenised(task.texts[split], tokenizer, task.targets[split]) for split in ("train", "validation")}
    swag = SwagCallback()
    model = train(task, data["train"], tokenizer, arguments, arguments.output, arguments.seed, callbacks=[swag]).model.eval()
    posterior = tune(
        swag.posterior,
        model,
        data["validation"],
        name=task.name,
        split="validation",
        sampling=Sampling(seed=arguments.seed),
        risks=[arguments.risk],
        confidence=arguments.risk_level or None,
        levels=[LEVEL],
        progress=False,
    )
    posterior.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    return posterior


def thresholds(posterior: SwagPosterior) -> Table:
    tuning = posterior.tuning
    table = Table("goal", "lowest score", "coverage", "risk")
    table.title = (
        f"Scale {posterior.scale:g}, temperature {tuning.temperature:.2f}, chosen on {tuning.num_examples} examples; "
        f"thresholds calibrated on them by cross-fitting"
    )
    for record in tuning.thresholds:
        numbers = ("-" if number is None else f"{number:.3f}" for number in (record.threshold, record.coverage, record.risk))
        table.add_row(f"{record.goal} {record.target:g}", *numbers)
    return table


def describe_abstaining(classify: object, task: TextTask, **goal: float) -> str:
    """Describe the pipeline's predictions with ``risk=...`` or ``coverage=...``."""
    name, target = next(iter(goal.items()))
    try:
        predictions = classify(task.texts["test"], **goal)
    except SwagError as error:  # no threshold has this guarantee
        return f"{name} {target:g}: no predictions. {error}"
    metrics = measured_abstention(predictions, task)
    description = (
        f"{name} {target:g}: coverage {metrics['coverage']:.3f}, risk {metrics['risk']:.3f} ({metrics['risk_of_all']:.3f} without "
        "abstention)"
    )
    if task.ood:
        deferred = [prediction["label"] is None for prediction in classify(task.ood, **goal)]
        description += f"; deferred {np.mean(deferred):.3f} of the out-of-distribution examples"
    return f"{description}."


def measured_abstention(predictions: list[dict], task: TextTask) -> dict[str, float]:
    """Return coverage and risk of a pipeline's predictions for the test split, and the risk without abstention."""
    truth = [task.labels[target] for target in task.targets["test"]]
    given = np.array([each["label"] is not None for each in predictions])
    right = np.array([(each["label"] or each["top_label"]) == label for each, label in zip(predictions, truth, strict=True)])
    risk = float((~right[given]).mean()) if given.any() else float("nan")
    return {"coverage": float(given.mean()), "risk": risk, "risk_of_all": float((~right).mean())}


def describe_sets(classify: object, task: TextTask) -> str:
    predictions = classify(task.texts["test"], prediction_set=LEVEL)
    truth = (task.labels[target] for target in task.targets["test"])
    held = np.mean([label in each["prediction_set"] for each, label in zip(predictions, truth, strict=True)])
    size = np.mean([len(each["prediction_set"]) for each in predictions])
    return f"Sets at level {LEVEL:g} hold the true label {held:.3f} of the time, with {size:.2f} labels on average."


if __name__ == "__main__":
    run(main)
