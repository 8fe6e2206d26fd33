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
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import small_mode
from methods import TUNED, Draws, at_temperature, predict, with_ensembles
from question_sets import Row, name_of, read_questions
from tables import metrics, table
from training import choice_settings, new_model, tokenizer_of, trained

from swag_trainer import ChoiceCollator, ChoiceSettings
from swag_trainer.tasks.multiple_choice import MultipleChoice


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse_arguments(arguments)
    if options.small:
        small_mode.prepare(options)
    check_folder(options)
    train = read_questions(options.train, training=True, limit=options.train_limit)
    sets = {
        "validation": train[-options.validation :],
        "test": read_questions(options.test, training=False, limit=options.limit),
    }
    for source in options.shifted:
        sets[name_of(source)] = read_questions(source, training=False, limit=options.shifted_limit or options.limit)
    encoder = ChoiceCollator(tokenizer_of(options), choice_settings(options)).encoder
    rows = {name: [encoder(question) for question in each] for name, each in sets.items()}
    labels = {name: np.array([row["labels"] for row in each]) for name, each in rows.items()}
    seeds = [of_seed(seed, train[: -options.validation], rows, encoder.settings, options) for seed in options.seeds]
    results = measured(seeds, labels)
    document = {"options": published(options), "sizes": {name: len(each) for name, each in rows.items()}, "results": results}
    Path(options.output, "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("\n\n".join(table(results, name) for name in sets if name != "validation"))
    return document


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny random model and 64 questions, to see that all of it runs")
    parser.add_argument(
        "--model", default="meta-llama/Llama-2-7b-hf", help="a causal language model: a name on the Hub or a folder"
    )
    parser.add_argument("--gguf-file", help="the file in that repository or folder, if the model lies in one")
    parser.add_argument("--train", help="questions to train on, the last of them to fit temperatures to")
    parser.add_argument("--test", help="questions to measure on")
    parser.add_argument("--shifted", nargs="+", help="questions of other kinds")
    parser.add_argument("--train-limit", type=int, help="take that many questions to train and validate on, at most")
    parser.add_argument("--limit", type=int, help="take that many questions of each other set, at most")
    parser.add_argument("--shifted-limit", type=int, help="take that many of each shifted set instead")
    parser.add_argument(
        "--validation", type=int, default=100, help="how many of the training questions are for temperatures and tuning"
    )
    parser.add_argument("--scoring", choices=("letters", "answers"), default="letters")
    parser.add_argument("--plain-prompt", action="store_true", help="leave out the tokenizer's chat template")
    parser.add_argument("--target-modules", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantise the model so while it is loaded, by bitsandbytes")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="compute activations again to save memory")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="paper-output")
    options = parser.parse_args(arguments)
    if not options.small and not (options.train and options.test and options.shifted):
        parser.error("--train, --test and --shifted are needed, or --small")
    return options


def check_folder(options: argparse.Namespace) -> None:
    """Refuse a folder that holds what other options made: adapters and probabilities there are taken for these."""
    own = {name: value for name, value in vars(options).items() if name not in ("output", "seeds")}
    if options.small:  # its model and questions are made anew, always the same
        own |= dict.fromkeys(("model", "train", "test", "shifted"))
    file = Path(options.output, "options.json")
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else own
    changed = sorted(name for name in {*own, *before} if own.get(name) != before.get(name))
    if changed:
        raise SystemExit(
            f"{options.output} holds a run with other options: {', '.join(changed)}. Give another --output, or the same options to go on."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")


def published(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options for results that may be published: files and folders of this machine have their names alone."""

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(each) for each in value]
        return Path(value).name if isinstance(value, str) and Path(value).exists() else value

    return {name: named(value) for name, value in vars(options).items() if name != "output"}


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
    main()
