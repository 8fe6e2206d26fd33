"""Question sets of the paper: files of one's own, and data sets of the Hub as multiple-choice questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets, load_dataset

from swag_trainer import SwagError
from swag_trainer.cli.text_files import SUFFIXES, read_records, unicode_problem
from swag_trainer.tasks.questions import Question

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


def read_questions(source: str, *, max_choices: int, training: bool = False, limit: int | None = None) -> list[Row]:
    """Return the questions of a file, such as one of JSON Lines, or of one of `HUB_SETS`.

    Args:
        source: A path or a name.
        max_choices: How many choices a question may have.
        training: Of a data set of the Hub, the split to train on instead of the one to test on.
        limit: How many at most, the first ones.

    Raises:
        SwagError: There is no such file, it has no questions, or one that cannot be used or that has no right choice.
    """
    if source not in HUB_SETS:
        return _of_file(Path(source), max_choices, limit)
    chosen = HUB_SETS[source]
    split = chosen.splits[0 if training else 1]
    examples = concatenate_datasets([load_dataset(chosen.path, config, split=split) for config in chosen.configs])
    count = len(examples) if limit is None else min(limit, len(examples))
    return [chosen.question(example) for example in examples.select(range(count))]


def _of_file(path: Path, max_choices: int, limit: int | None) -> list[Row]:
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise SwagError(
            f"{str(path)!r} is neither a file of questions ({', '.join(SUFFIXES)}) nor one of {', '.join(HUB_SETS)}."
        )
    records = list(islice(read_records(path), limit))
    for record in records:
        problem = record.problem or unicode_problem(record.values) or _problem_of(record.values, max_choices)
        if problem is not None:
            raise SwagError(f"The question in line {record.line} of {str(path)!r} cannot be used: {problem}")
    if not records:
        raise SwagError(f"{str(path)!r} has no questions.")
    return [dict(record.values) for record in records]


def _problem_of(row: Mapping[str, Any], max_choices: int) -> str | None:
    """Return why a row is no question with a right choice; None where it is one."""
    try:
        question = Question.from_row(row, max_choices=max_choices)
    except SwagError as error:
        return str(error)
    return 'it has no right choice: "answer" names its place, from 0.' if question.answer is None else None


def sources_by_name(sources: Sequence[str]) -> dict[str, str]:
    """Return question sets by what they are called in the tables: files by their names, with the folder's where another set has that name."""
    named = {"validation": "", "test": ""}
    for source in sources:
        path = Path(source)
        names = [source] if source in HUB_SETS else [path.stem, f"{path.parent.name}/{path.stem}"]
        free = next((name for name in names if name not in named), None)
        if free is None:
            raise SwagError(
                f"--shifted names {source} beside another set that is called {names[-1]}: give each file a name of its own."
            )
        named[free] = source
    return {name: source for name, source in named.items() if source}
