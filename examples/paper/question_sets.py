"""Question sets of the paper: files of one's own, and data sets of the Hub as multiple-choice questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets, load_dataset

Row = dict[str, Any]


@dataclass(frozen=True)
class HubSet:
    """A data set of the Hub.

    Attributes:
        path: Its repository.
        configs: Its configurations, whose examples are put together.
        splits: The splits to train and to test on; of a set without public test labels the latter is the validation split.
        question: Makes a question of an example: "question", "choices" and "answer", or columns that `Question.from_row` reads.
    """

    path: str
    configs: Sequence[str | None]
    splits: tuple[str, str]
    question: Callable[[Mapping[str, Any]], Row] = dict


def _sentences(question: str, choices: Sequence[str], *columns: str) -> Callable[[Mapping[str, Any]], Row]:
    """Return what makes a question of a task of GLUE: its sentences, then the question about them."""

    def make(example: Mapping[str, Any]) -> Row:
        text = "\n".join(str(example[column]) for column in columns)
        return {"question": f"{text}\n{question}", "choices": list(choices), "answer": int(example["label"])}

    return make


def _winogrande(example: Mapping[str, Any]) -> Row:
    return {
        "question": f"{example['sentence']}\nWhat belongs in place of the _?",
        "choices": [example["option1"], example["option2"]],
        "answer": int(example["answer"]) - 1,
    }


def _boolq(example: Mapping[str, Any]) -> Row:
    return {
        "question": f"{example['passage']}\n{example['question']}?",
        "choices": ["no", "yes"],
        "answer": int(example["answer"]),
    }


_COMPUTER_SCIENCE = ("college_computer_science", "high_school_computer_science", "computer_security", "machine_learning")
_LAW = ("international_law", "jurisprudence", "professional_law")
_HEALTH = ("anatomy", "clinical_knowledge", "college_medicine", "human_aging", "nutrition", "professional_medicine", "virology")

HUB_SETS: Mapping[str, HubSet] = {
    "obqa": HubSet("allenai/openbookqa", ["main"], ("train", "test")),
    "csqa": HubSet("tau/commonsense_qa", [None], ("train", "validation")),
    "arc-e": HubSet("allenai/ai2_arc", ["ARC-Easy"], ("train", "test")),
    "arc-c": HubSet("allenai/ai2_arc", ["ARC-Challenge"], ("train", "test")),
    "wg-s": HubSet("allenai/winogrande", ["winogrande_s"], ("train", "validation"), _winogrande),
    "wg-m": HubSet("allenai/winogrande", ["winogrande_m"], ("train", "validation"), _winogrande),
    "boolq": HubSet("google/boolq", [None], ("train", "validation"), _boolq),
    "mmlu-cs": HubSet("cais/mmlu", _COMPUTER_SCIENCE, ("dev", "test")),
    "mmlu-eng": HubSet("cais/mmlu", ["electrical_engineering"], ("dev", "test")),
    "mmlu-law": HubSet("cais/mmlu", _LAW, ("dev", "test")),
    "mmlu-health": HubSet("cais/mmlu", _HEALTH, ("dev", "test")),
    "cola": HubSet(
        "nyu-mll/glue", ["cola"], ("train", "validation"), _sentences("Is this grammatical?", ("no", "yes"), "sentence")
    ),
    "sst2": HubSet(
        "nyu-mll/glue", ["sst2"], ("train", "validation"), _sentences("Is this review positive?", ("no", "yes"), "sentence")
    ),
    "mrpc": HubSet(
        "nyu-mll/glue",
        ["mrpc"],
        ("train", "validation"),
        _sentences("Do both sentences mean the same?", ("no", "yes"), "sentence1", "sentence2"),
    ),
    "rte": HubSet(
        "nyu-mll/glue",
        ["rte"],
        ("train", "validation"),
        _sentences("Does the second sentence follow from the first?", ("yes", "no"), "sentence1", "sentence2"),
    ),
}


def read_questions(source: str, *, training: bool, limit: int | None = None) -> list[Row]:
    """Return the questions of a file of JSON Lines, or of one of `HUB_SETS`.

    Args:
        source: A path or a name.
        training: Of a data set of the Hub, the split to train on instead of the one to test on.
        limit: How many at most, the first ones.
    """
    if source not in HUB_SETS:
        with open(source, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()][:limit]
    chosen = HUB_SETS[source]
    split = chosen.splits[0 if training else 1]
    examples = concatenate_datasets([load_dataset(chosen.path, config, split=split) for config in chosen.configs])
    count = len(examples) if limit is None else min(limit, len(examples))
    return [chosen.question(example) for example in examples.select(range(count))]


def name_of(source: str) -> str:
    """Return what a question set is called in the tables."""
    return source if source in HUB_SETS else Path(source).stem
