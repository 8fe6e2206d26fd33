"""The protocol of SWAG-LoRA (arXiv:2405.03425) on multiple-choice questions that a causal language model answers.

    python examples/paper/multiple_choice.py --small
    python examples/paper/multiple_choice.py --train obqa --test obqa --shifted arc-e arc-c mmlu-cs
    python examples/paper/multiple_choice.py --model HuggingFaceTB/SmolLM2-135M-Instruct --dtype float32 --scoring answers \
        --learning-rate 5e-4 --train arc_easy.train.jsonl --test arc_easy.test.jsonl --shifted arc_challenge.test.jsonl

A question set is a name on the Hub (`question_sets.HUB_SETS`) or a file of JSON Lines of {"question": ..., "choices": [...], "answer": ...}.
For each seed two LoRA adapters are trained at the same cost: one as usual, one whose posterior is collected. The runs of all seeds are also
the members of the ensembles. The last training questions are kept back: temperatures are fitted to them, and SWAG is tuned on them.

Adapters, snapshots and the probabilities of every draw are kept under --output, where another run finds them, and goes on. The tables have
means and standard deviations over the seeds; results.json has every number. Defaults are those for models of the size of Llama-2-7B.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import small_mode
from methods import TUNED, Draws, at_temperature, predict, with_ensembles
from paper_options import check_folder, parse_arguments, published
from question_sets import Row, read_questions, sources_by_name
from tables import metrics, table
from training import new_model, question_encoder, trained

from swag_trainer import ChoiceSettings, SwagError
from swag_trainer.calibration.tune import MIN_EXAMPLES
from swag_trainer.posterior.atomic import write_bytes
from swag_trainer.tasks.multiple_choice import MultipleChoice


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse_arguments(arguments, __doc__)
    if options.small:
        small_mode.prepare(options)
    train, sets = read_sets(options)
    encoder = question_encoder(options)
    for question in train:  # one that cannot be used is found now, and not where the Trainer comes upon it
        encoder(question)
    rows = {name: [encoder(question) for question in each] for name, each in sets.items()}
    labels = {name: np.array([row["labels"] for row in each]) for name, each in rows.items()}
    check_folder(options, {"train": train, **sets})
    seeds = [of_seed(seed, train, rows, encoder.settings, options) for seed in options.seeds]
    results = measured(seeds, labels)
    document = {"options": published(options), "sizes": {name: len(each) for name, each in rows.items()}, "results": results}
    write_bytes(Path(options.output, "results.json"), (json.dumps(document, indent=1) + "\n").encode())
    print("\n\n".join(table(results, name) for name in sets if name != "validation"))
    return document


def read_sets(options: argparse.Namespace) -> tuple[list[Row], dict[str, list[Row]]]:
    """Return the questions to train on, and the sets "validation", "test" and the shifted ones by name.

    Raises:
        SwagError: One cannot be read, or too few are left to tune on or to train on.
    """
    read = functools.partial(read_questions, max_choices=options.max_choices)
    shifted = sources_by_name(options.shifted)
    train = read(options.train, training=True, limit=options.train_limit)
    if not MIN_EXAMPLES <= options.validation < len(train):
        raise SwagError(
            f"--validation keeps {options.validation} of {len(train)} training questions back; {MIN_EXAMPLES} are needed there at least, and one "
            "to train on."
        )
    sets = {"validation": train[-options.validation :], "test": read(options.test, limit=options.limit)}
    sets |= {name: read(source, limit=options.shifted_limit or options.limit) for name, source in shifted.items()}
    return train[: -options.validation], sets


def of_seed(
    seed: int, train: list[Row], rows: Mapping[str, list[Row]], settings: ChoiceSettings, options: argparse.Namespace
) -> dict[str, Draws]:
    """Return what each method predicts after the trainings of a seed; what an earlier command left is not computed again."""
    folder = Path(options.output, f"seed-{seed}")
    runs = {kind: trained(kind, train, folder / kind, seed=seed, options=options) for kind in ("map", "swag")}
    model = new_model(seed, options).eval()
    return predict(model, runs, MultipleChoice(settings), rows, folder, num_samples=options.num_samples)


def measured(seeds: Sequence[Mapping[str, Draws]], labels: Mapping[str, np.ndarray]) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics of each method in each seed, of ensembles of the seeds, and of each with a temperature."""
    runs = {method: [seed[method] for seed in seeds] for method in seeds[0]}
    if len(seeds) > 1:
        runs |= {name: [draws] for name, draws in with_ensembles(seeds).items()}
    results: dict[str, list[dict[str, Any]]] = {}
    for method, each in runs.items():
        results[method] = [metrics(draws, labels) for draws in each]
        if method != TUNED:  # has a temperature of its own
            scaled = [at_temperature(draws, labels["validation"]) for draws in each]
            results[f"{method}, T"] = [metrics(draws, labels) | {"temperature": found} for draws, found in scaled]
    return results


if __name__ == "__main__":
    try:
        main()
    except SwagError as error:
        raise SystemExit(str(error)) from error
