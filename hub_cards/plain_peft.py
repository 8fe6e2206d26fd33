"""The example of a model card that opens the adapter with PEFT and transformers alone, with the labels written out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from swag_trainer import WeightPosterior
from swag_trainer.tasks import task_named

_MOST_LABELS, _LONGEST_LABEL = 100, 60
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PROBLEM_TYPES = ("regression", "multi_label_classification")  # the third is transformers' own choice


class _Example(NamedTuple):
    """How transformers alone predicts with the models of an auto class: the pipeline, what makes its inputs, and an input."""

    task: str
    preprocessor: str
    argument: str
    given: str


# Where the labels are names of classes.
_EXAMPLES = {
    "AutoModelForSequenceClassification": _Example(
        "text-classification", "AutoTokenizer", "tokenizer", '"A text of the kind it was trained on.", truncation=True'
    ),
    "AutoModelForTokenClassification": _Example(
        "token-classification", "AutoTokenizer", "tokenizer", '"A text of the kind it was trained on."'
    ),
    "AutoModelForImageClassification": _Example("image-classification", "AutoImageProcessor", "image_processor", '"image.png"'),
}


def plain_peft_example(posterior: WeightPosterior, *, repo_id: str, base_model: str | None) -> Markup:
    """Return Python code, safe inside a fence of Markdown.

    adapter_config.json has no place for labels, and transformers makes a head of two without being told: the head of any other number
    of classes does not fit.

    Args:
        posterior: Whose adapter.
        repo_id: Id of its repository on the Hub.
        base_model: Id of the base model on the Hub, if it is there.
    """
    record, auto_model = posterior.record, task_named(posterior.record.task).auto_model.__name__
    example = _EXAMPLES.get(auto_model)
    preprocessor, argument = example[1:3] if example else ("AutoTokenizer", "tokenizer")
    names = [preprocessor, auto_model, *(["pipeline"] if example else [])]
    lines = [
        "from peft import PeftModel",
        f"from transformers import {', '.join(sorted(names, key=str.lower))}",
        "",
        f"base = {auto_model}.from_pretrained(",
        f'    "{base_model}",' if base_model else '    "user/base",  # the base model that the adapter was trained on',
    ]
    if base_model and record.base_revision and _COMMIT.fullmatch(record.base_revision):
        lines.append(f'    revision="{record.base_revision}",')
    if example and record.labels:
        lines += _label_arguments(record.labels)
    if example and record.problem_type in _PROBLEM_TYPES:
        lines.append(f'    problem_type="{record.problem_type}",')
    lines += [
        ")",
        f'model = PeftModel.from_pretrained(base, "{repo_id}").eval()',
        f'{argument} = {preprocessor}.from_pretrained("{repo_id}")',
    ]
    if example:
        lines += [
            f'classify = pipeline("{example.task}", model=model, {argument}={argument})',
            f"print(classify({example.given}))",
        ]
    return Markup("\n".join(lines))


def _label_arguments(labels: Sequence[str]) -> list[str]:
    lines = [f"    num_labels={len(labels)},"]
    if len(labels) > _MOST_LABELS or any(len(label) > _LONGEST_LABEL for label in labels):
        return [
            *lines,
            "    # id2label, label2id: the labels are too many or too long to be listed; swag_posterior.safetensors has them",
        ]
    numbered = [(index, _literal(label)) for index, label in enumerate(labels)]
    return [
        *lines,
        "    id2label={" + ", ".join(f"{index}: {label}" for index, label in numbered) + "},",
        "    label2id={" + ", ".join(f"{label}: {index}" for index, label in numbered) + "},",
        "    ignore_mismatched_sizes=True,  # the head of the base model, if it has one, is replaced by the adapter's",
    ]


def _literal(label: str) -> str:
    """Return a label as a Python string of plain characters: nothing in it ends the fence, a comment of HTML or the line."""
    return re.sub(r"[<>&`]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(label))
