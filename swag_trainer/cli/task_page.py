"""Web page of `swag-trainer serve` for every task but texts with one label each: fields for an input, and its prediction as a table.

What a user types and what a repository holds is untrusted input. It is shown in text boxes and in cells of text, never in Markdown or HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swag_trainer.cli.files import require
from swag_trainer.cli.page import environment_as_it_was
from swag_trainer.errors import SwagError

if TYPE_CHECKING:
    import gradio as gr
    import pandas as pd

MOST_CHARACTERS = 20_000  # of a field
MOST_LINES = 50  # of a field of choices or labels: each costs a forward of every draw
_KEPT_SECONDS = 3600  # of an image that was uploaded
_SINGULAR = {"labels": "label", "scores": "score"}  # columns of a row, by the lists of zero-shot classification
_IMAGE, _EACH_LINE = "Image", ", one on each line"


@dataclass(frozen=True)
class _Form:
    """What a task is asked with.

    Attributes:
        fields: Label and number of lines of each field; `_IMAGE` for a picture.
        request: Makes what the pipeline is called with of the fields' values: its input, and options.
    """

    fields: Sequence[tuple[str, int]]
    request: Callable[..., tuple[Any, dict[str, Any]]]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


_CHOICES = _Form(
    (("Question", 2), (f"Choices{_EACH_LINE}", 4)),
    lambda question, choices: ({"question": question, "choices": _lines(choices)}, {"top_k": None}),
)
_FORMS: Mapping[str, _Form] = {
    "swag-multiple-choice": _CHOICES,
    "swag-multiple-choice-encoder": _CHOICES,
    "swag-question-answering": _Form(
        (("Question", 1), ("Text that holds the answer", 6)),
        lambda question, context: ({"question": question, "context": context}, {"top_k": 3}),
    ),
    "swag-zero-shot-classification": _Form(
        (("Text", 3), (f"Labels{_EACH_LINE}", 4)), lambda text, labels: (text, {"candidate_labels": _lines(labels)})
    ),
    "swag-text-classification": _Form((("Text", 3),), lambda text: (text, {"top_k": None})),  # several labels, or a regression
    "swag-token-classification": _Form((("Text", 3),), lambda text: (text, {"aggregation_strategy": "simple"})),
    "swag-text-generation": _Form((("Beginning of a text", 3),), lambda text: (text, {"max_new_tokens": 50})),
    "swag-image-classification": _Form(((_IMAGE, 0),), lambda image: (image, {})),
}


def build_task_page(predict: Any, *, name: str, text: str = "") -> gr.Blocks:
    """Build the page of a pipeline; ``launch(**swag_trainer.cli.page.LAUNCH)`` serves it.

    Args:
        predict: A pipeline of this package, of one of the tasks in `_FORMS`.
        name: Name of the model on the page.
        text: In the first field at first.

    Raises:
        SwagError: gradio is not installed, or the task has no page.
    """
    gr = require("gradio", extra="page")
    if predict.task not in _FORMS:
        raise SwagError(f"{predict.task!r} has no page; swag-trainer predict predicts with it.")
    form = _FORMS[predict.task]
    if text and form.fields[0][0] == _IMAGE:
        raise SwagError(f"{predict.task} takes images: leave --text out.")
    with environment_as_it_was():
        kept = (_KEPT_SECONDS, _KEPT_SECONDS)  # how often uploads are looked at, and how old they may be
        page = gr.Blocks(title="How certain is it?", analytics_enabled=False, delete_cache=kept)
    with page:
        gr.Markdown("# How certain is it?")
        inputs = [
            gr.Image(type="pil", label=label)
            if label == _IMAGE
            else gr.Textbox(text if place == 0 else "", label=label, lines=lines, max_length=MOST_CHARACTERS)
            for place, (label, lines) in enumerate(form.fields)
        ]
        button = gr.Button("Predict", variant="primary")
        message = gr.Textbox("", label="Message", visible=False, interactive=False, elem_id="message")
        table = gr.Dataframe(
            None, interactive=False, label="Prediction", wrap=True, datatype="str", visible=False, elem_id="table"
        )
        about = f"{name}\n{predict.posterior.title}, {_draws_of(predict)}; uncertainty in nats"
        gr.Textbox(about, label="Model", lines=2, interactive=False, elem_id="about")

        def show(*values: Any) -> list[Any]:
            try:
                found = prediction_of(predict, values)
            except SwagError as error:
                return [gr.Textbox(str(error), visible=True), gr.Dataframe(visible=False)]
            return [gr.Textbox(visible=False), gr.Dataframe(found, visible=True)]

        button.click(show, inputs, [message, table], api_name=False)
    return page


def _draws_of(predict: Any) -> str:
    sampling = predict.options.resolved(predict.posterior)
    if sampling.scale == 0 or (predict.posterior.is_point and not sampling.dropout):
        return "one prediction"
    return f"{sampling.num_samples} draws averaged"


def prediction_of(predict: Any, values: Sequence[Any]) -> pd.DataFrame:
    """Return the prediction for the values of the fields: a row for each label, entity or text, with its numbers to three places.

    Raises:
        SwagError: A field is empty, or the pipeline refuses the input.
    """
    import pandas as pd

    form = _FORMS[predict.task]
    for (label, _), value in zip(form.fields, values, strict=True):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise SwagError(f"{label}: there is nothing yet.")
        if isinstance(value, str) and len(value) > MOST_CHARACTERS:
            raise SwagError(f"{label}: at most {MOST_CHARACTERS:,} characters are taken, and there are {len(value):,}.")
        if label.endswith(_EACH_LINE) and len(_lines(value)) > MOST_LINES:
            raise SwagError(f"{label}: at most {MOST_LINES} are taken, and there are {len(_lines(value))}.")
    given, options = form.request(*values)
    before = predict.num_truncated
    try:
        found = predict(given, **options)
    except ValueError as error:  # of transformers' own pipelines
        raise SwagError(str(error)) from error
    if predict.num_truncated > before:
        raise SwagError("This is longer than the model can take. It is not truncated silently: shorten it.")
    rows = _rows(found)
    if not rows:
        raise SwagError("Nothing was found in it.")
    return pd.DataFrame([{column: _cell(value) for column, value in row.items() if _is_shown(value)} for row in rows])


def _rows(found: Any) -> list[dict[str, Any]]:
    """Return the rows of a prediction: each of a list, and each label of the labels with scores that zero-shot classification gives."""
    if isinstance(found, Mapping):
        if isinstance(found.get("labels"), list):
            columns = {name: value for name, value in found.items() if name != "sequence"}
            return [
                {
                    _SINGULAR.get(name, name): value[place] if isinstance(value, list) else value
                    for name, value in columns.items()
                }
                for place in range(len(found["labels"]))
            ]
        return [dict(found)]
    return [row for each in found for row in _rows(each)]


def _is_shown(value: Any) -> bool:
    return isinstance(value, (str, int, float))


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
