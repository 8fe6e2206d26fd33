"""Command of the study: trains what is not trained yet, predicts what is not predicted yet, and prints the tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from study.catalogue import DISTILLATION, FITS, IDEAS, RATES, RECIPES, SMOOTHING, SWAG_MEAN, VARIANTS
from study.coefficients import COEFFICIENTS
from study.detection import detection
from study.predictions import Run, relative_energy
from study.recipes import Outcome
from study.resampling import resampled_nll
from study.scales import scale_table, validation_nll
from study.tables import REFERENCES, detection_table, difference_table, metric_table, resampled_table
from study.tasks import BASE, Sizes, StudyTask, read_data, standard_tasks
from study.training import Optimization
from study.trainings import MEMBERS, NUM_SEEDS, SEEDS, SGD, SGD_RATES, next_seeds
from study.variational import BLOB, IVON
from swag_trainer.metrics.calibration import expected_calibration_error
from swag_trainer.metrics.scores import brier_score, negative_log_likelihood

RESULTS = Path(__file__).parents[1] / "results" / "calibration-study.json"
PARTS: dict[str, Mapping[str, Callable[[Run], Outcome]]] = {
    "recipes": RECIPES,
    "ideas": IDEAS,
    "variants": VARIANTS,
    "rates": RATES,
    "smoothing": SMOOTHING,
    "distillation": DISTILLATION,
    "fits": FITS,
    "members": MEMBERS,
    "seeds": SEEDS,
    "sgd": SGD,
    "sgd-rates": SGD_RATES,
    "blob": BLOB,
    "ivon": IVON,
    "coefficients": COEFFICIENTS,
}
# The trainings that recipes need.
SCHEDULES_OF = {"rates": ["halved", "floor"], "smoothing": ["smoothed"]}


def parser() -> argparse.ArgumentParser:
    """Return the parser of `benchmarks/calibration.py --study`."""
    options = argparse.ArgumentParser(prog="calibration.py --study", description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path, help="where trajectories and logits are kept: some 50 MB for each task and seed")
    options.add_argument("--data", type=Path, help="folder with clinc15, hwu64 and banking77; without it the demo's text alone")
    options.add_argument("--tasks", nargs="+", help="names of tasks; default: all")
    options.add_argument("--seeds", type=int, nargs="+", default=list(range(NUM_SEEDS)))
    options.add_argument("--learning-rate", type=float, default=Optimization.learning_rate)
    options.add_argument("--frozen-layers", type=int, default=Sizes.frozen_layers)
    options.add_argument(
        "--parts",
        nargs="+",
        choices=list(PARTS),
        default=["recipes", "ideas"],
        help="those that others are compared with are always in",
    )
    options.add_argument(
        "--resamples", type=int, default=0, help="divide the test examples anew so often, see study.resampling"
    )
    options.add_argument("--only", choices=["train", "predict", "tables"], help="one stage; what is not trained is left out")
    options.add_argument("--results", type=Path, default=RESULTS)
    return options


def main(arguments: Sequence[str]) -> None:
    """Run the stages that are asked for. Finished pieces are files in the folder and are not computed again."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    tasks = [task for task in standard_tasks(options.data) if not options.tasks or task.name in options.tasks]
    study(tasks, options)


def study(
    tasks: Sequence[StudyTask], options: argparse.Namespace, *, base: Path | str | None = None, sizes: Sizes | None = None
) -> None:
    """Run the study on some tasks: one seed of every task, then the next.

    Args:
        tasks: The tasks.
        options: What `parser` returned.
        base: The base model, default: MiniLM-L6.
        sizes: Default: those of `Sizes`.
    """
    base = base or BASE
    sizes = sizes or Sizes(frozen_layers=options.frozen_layers)
    if options.only != "tables":
        for seed in options.seeds:
            for task in tasks:
                _run(task, seed, options, base, sizes)
    results = _collected(tasks, options.folder)
    if results:
        options.results.parent.mkdir(exist_ok=True)
        options.results.write_text(json.dumps({"settings": _settings(options, sizes), "results": results}, indent=1) + "\n")
        print(report(results))


def report(results: dict[str, dict[str, dict]]) -> str:
    """Return all tables, of the recipes that were measured for every task and seed."""
    everywhere = [
        name
        for part in PARTS.values()
        for name in part
        if all(name in seed["recipes"] for seeds in results.values() for seed in seeds.values())
    ]
    tables = [metric_table(results, metric, everywhere) for metric in ("nll", "ece", "accuracy")]
    return "\n\n".join(
        [
            *tables,
            difference_table(results, everywhere),
            resampled_table(results),
            scale_table(results),
            detection_table(results),
        ]
    )


def _run(task: StudyTask, seed: int, options: argparse.Namespace, base: Path | str, sizes: Sizes) -> None:
    folder = options.folder / task.name / f"seed-{seed}"
    schedules = _schedules(options)
    trained = all((folder / f"{name}.safetensors").exists() for name in schedules)
    if trained if options.only == "train" else options.only == "predict" and not trained:
        return
    everything = {name: recipe for part in PARTS.values() for name, recipe in part.items()}
    file = folder / "metrics.json"
    known = json.loads(file.read_text()) if file.exists() else {"recipes": {}}
    wanted = {name for part in ("recipes", *options.parts) for name in PARTS[part]}
    missing = wanted - set(known["recipes"]) or "scales" not in known or (options.resamples and "resampled" not in known)
    if trained and not missing:
        return
    wanted |= set(known["recipes"])
    run = _new_run(task, seed, options, base, sizes)
    if wanted & set(SEEDS):
        run.others = [_new_run(task, other, options, base, sizes) for other in next_seeds(seed)]
    run.train(schedules)
    if options.only == "train":
        print(f"{task.name}, seed {seed}: trained", flush=True)
        return
    known["recipes"] = measured(
        {name: recipe(run) for name, recipe in everything.items() if name in wanted}, run.data.splits["test"].labels
    )
    known |= {"detection": detection(run), "relative_energy": relative_energy(run.gaussian(SWAG_MEAN))}
    known["scales"] = validation_nll(run)
    known["validation_nll"] = {name: run.trajectory(name).validation_nll for name in schedules}
    if options.resamples:
        recipes = {name: everything[name] for name in wanted & set(RECIPES | IDEAS) - {"old tune"}}
        known["resampled"] = resampled_nll(run, recipes, validation_rows=sizes.resampled, repeats=options.resamples)
    file.write_text(json.dumps(known, indent=1))
    print(f"{task.name}, seed {seed}: predicted", flush=True)


def _new_run(task: StudyTask, seed: int, options: argparse.Namespace, base: Path | str, sizes: Sizes) -> Run:
    return Run(
        options.folder / task.name / f"seed-{seed}",
        read_data(task, base, seed=seed, sizes=sizes),
        base,
        steps=task.steps,
        seed=seed,
        frozen_layers=sizes.frozen_layers,
        optimization=Optimization(learning_rate=options.learning_rate),
    )


def measured(outcomes: Mapping[str, Outcome], labels: np.ndarray) -> dict[str, dict]:
    """Return the metrics of every recipe on the test examples, and the standard errors over them of differences in NLL."""
    losses = {name: -np.log(outcome.probabilities[np.arange(len(labels)), labels]) for name, outcome in outcomes.items()}
    return {
        name: {
            "nll": float(negative_log_likelihood(outcome.probabilities, labels)),
            "ece": float(expected_calibration_error(outcome.probabilities, labels)),
            "brier": float(brier_score(outcome.probabilities, labels)),
            "accuracy": float((outcome.probabilities.argmax(1) == labels).mean()),
            "chosen": outcome.chosen,
            "standard_error": {
                other: float((losses[name] - losses[other]).std(ddof=1) / len(labels) ** 0.5) for other in REFERENCES
            },
        }
        for name, outcome in outcomes.items()
    }


def _collected(tasks: Sequence[StudyTask], folder: Path) -> dict[str, dict[str, dict]]:
    found = {
        task.name: {
            file.parent.name.removeprefix("seed-"): json.loads(file.read_text())
            for file in sorted((folder / task.name).glob("seed-*/metrics.json"))
        }
        for task in tasks
    }
    return {name: seeds for name, seeds in found.items() if seeds}


def _schedules(options: argparse.Namespace) -> list[str]:
    """Return the learning-rate schedules that the parts need."""
    return ["held", "decay", *(name for part in options.parts for name in SCHEDULES_OF.get(part, []))]


def _settings(options: argparse.Namespace, sizes: Sizes) -> dict[str, object]:
    return {**asdict(Optimization(learning_rate=options.learning_rate)), "schedules": _schedules(options), **asdict(sizes)}
