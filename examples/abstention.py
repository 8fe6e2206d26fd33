"""Answer only where few answers are wrong, and name the labels that cannot be ruled out elsewhere: as promised, and as measured.

    python examples/abstention.py
    python examples/abstention.py --dataset clinc/clinc_oos:plus --train-rows 1500 --risk 0.02

A model is trained, its posterior tuned on the validation split, saved and loaded by the pipeline, which then abstains by itself. The test
split, which nothing was chosen on, says whether the promises were kept.
"""

from __future__ import annotations

import argparse

import numpy as np
from quickstart import DATA, bundled_minilm, console, quiet_libraries, run, tokenised, train
from rich.table import Table
from text_data import TextTask, read_task
from transformers import AutoTokenizer, pipeline

from swag_trainer import Sampling, SwagCallback, SwagError, SwagPosterior, tune

LEVEL = 0.9  # of the conformal sets, one of those that tune() calibrates unless told otherwise


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    task = read_task(arguments.dataset).subset(arguments.train_rows, arguments.validation_rows, seed=arguments.seed)
    posterior = tuned_posterior(task, arguments)
    console.print(thresholds(posterior))
    classify = pipeline("swag-text-classification", model=arguments.output)
    console.print(
        f"Measured on {len(task.texts['test'])} rows of the test split, and {len(task.foreign)} that belong to no class:"
    )
    for sentence in (
        said_of_abstaining(classify, task, risk=arguments.risk),
        said_of_abstaining(classify, task, coverage=LEVEL),
        said_of_sets(classify, task),
    ):
        console.print(f"* {sentence}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset", default=str(DATA), help="a Hub name (name or name:config), a .jsonl or .csv file, or a folder"
    )
    parser.add_argument("--train-rows", type=int, help="train on that many rows, balanced over the classes")
    parser.add_argument("--validation-rows", type=int, help="tune on that many rows; half of them make the promises")
    parser.add_argument("--model", default=str(bundled_minilm()), help="a Hub name or a folder")
    parser.add_argument("--target-modules", nargs="+", default=["query", "value"], help="the layers that get LoRA")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--risk", type=float, default=0.05, help="largest share of wrong answers among those given")
    parser.add_argument(
        "--risk-level",
        type=float,
        default=0.9,
        help="probability of that promise; 0 for none, and a threshold that fits these rows",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="abstention-output")
    return parser.parse_args()


def tuned_posterior(task: TextTask, arguments: argparse.Namespace) -> SwagPosterior:
    """Train, tune, and save what the pipeline loads."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    data = {split: tokenised(task.texts[split], tokenizer, task.targets[split]) for split in ("train", "validation")}
    swag = SwagCallback()
    model = train(task, data["train"], tokenizer, arguments, arguments.output, arguments.seed, callbacks=[swag])
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
    table = Table("goal", "answer from score", "answered", "wrong among them")
    table.title = (
        f"Scale {posterior.scale:g}, temperature {tuning.temperature:.2f}, chosen on {tuning.num_examples} rows; "
        f"thresholds calibrated on {tuning.num_calibration} others"
    )
    for record in tuning.thresholds:
        numbers = ("-" if number is None else f"{number:.3f}" for number in (record.threshold, record.coverage, record.risk))
        table.add_row(f"{record.goal} {record.target:g}", *numbers)
    return table


def said_of_abstaining(classify: object, task: TextTask, **goal: float) -> str:
    """Say how the pipeline did with ``risk=...`` or ``coverage=...``."""
    name, target = next(iter(goal.items()))
    try:
        known = classify(task.texts["test"], **goal)
    except SwagError as error:  # no threshold could be promised
        return f"{name} {target:g}: no answers. {error}"
    figures = measured_abstention(known, task)
    said = (
        f"{name} {target:g}: answered {figures['coverage']:.3f} of the rows, {figures['risk']:.3f} of the answers are wrong "
        f"({figures['risk_of_all']:.3f} if every row is answered)"
    )
    if task.foreign:
        foreign = classify(task.foreign, **goal)
        said += f"; handed over {np.mean([answer['label'] is None for answer in foreign]):.3f} of the foreign rows"
    return f"{said}."


def measured_abstention(answers: list[dict], task: TextTask) -> dict[str, float]:
    """Coverage and risk of a pipeline's answers for the test split, and the risk of answering everything."""
    truth = [task.labels[target] for target in task.targets["test"]]
    given = np.array([answer["label"] is not None for answer in answers])
    right = np.array([(answer["label"] or answer["top_label"]) == label for answer, label in zip(answers, truth, strict=True)])
    risk = float((~right[given]).mean()) if given.any() else float("nan")
    return {"coverage": float(given.mean()), "risk": risk, "risk_of_all": float((~right).mean())}


def said_of_sets(classify: object, task: TextTask) -> str:
    answers = classify(task.texts["test"], prediction_set=LEVEL)
    truth = (task.labels[target] for target in task.targets["test"])
    held = np.mean([label in answer["prediction_set"] for answer, label in zip(answers, truth, strict=True)])
    size = np.mean([len(answer["prediction_set"]) for answer in answers])
    return f"Sets that should hold the true label {LEVEL:g} of the time hold it {held:.3f} of the time, with {size:.2f} labels on average."


if __name__ == "__main__":
    run(main)
