"""Web page of `swag-trainer serve`, which a Space runs as well. Its app.py, beside a requirements.txt with ``swag-trainer[page]``:

    from transformers import pipeline
    from swag_trainer.cli.page import LAUNCH, build_page
    build_page(pipeline("swag-text-classification", model="me/roberta-sst2-swag")).launch(**LAUNCH)

What a user types and what a repository holds (labels, names) is untrusted input. It is shown as text: in text boxes, labels, cells and on
the axis of a plot, never in Markdown, HTML or the title of a component.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from swag_trainer.cli.files import require
from swag_trainer.cli.page_predictions import (
    MOST_CHARACTERS,
    PagePredictions,
    TextPredictions,
    circumstances,
    uncertainty,
    verdict,
)
from swag_trainer.errors import SwagError

if TYPE_CHECKING:
    import gradio as gr
    import pandas as pd

    from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline

SHOWN_CLASSES = 5
_AXIS_CHARACTERS = 20  # of a class's name below the plot, where five stand side by side
# A name without spaces would push the probability after it out of its box.
_CSS = "#averaged dt, #mean dt, #trained dt { overflow-wrap: anywhere; }"
# Typed texts are kept private: no history in the browser, no public link, no second server process, no external links.
LAUNCH: dict[str, Any] = {"share": False, "run_history": False, "ssr_mode": False, "footer_links": [], "css": _CSS}


def build_page(
    classify: SwagTextClassificationPipeline, *, name: str | None = None, text: str = "", title: str = "How certain is it?"
) -> gr.Blocks:
    """Build the page of a pipeline; ``launch(**LAUNCH)`` serves it.

    Args:
        classify: The pipeline "swag-text-classification" of a classifier whose classes exclude each other. Draws, scale, temperature and
            threshold are those that it was given, or those of its posterior.
        name: Name of the model on the page; default: where it was loaded from.
        text: Text in the box at first, classified when the page opens.
        title: Heading of the page, in Markdown.

    Raises:
        SwagError: gradio is not installed, or the model is for several labels at once or a regression.
    """
    gr = require("gradio", extra="page")
    predict = PagePredictions(classify)
    name = name or str(getattr(classify.model, "name_or_path", "")) or "The model"
    about = circumstances(predict, name)
    threshold = round(predict.first_decision.threshold, 3)
    # Predicted here, not on the browser's first request: the page opens with everything in place.
    values = _shown(predict, text, threshold) if text else ["", None, None, None, "", None, None]
    first = dict(zip(("verdict", "averaged", "mean", "trained", "uncertainty", "points", "table"), values, strict=True))
    with _environment_as_it_was():
        page = gr.Blocks(title=title, analytics_enabled=False)
    with page:
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column(scale=3):
                box = gr.Textbox(text, label="Text", lines=3, max_length=MOST_CHARACTERS, autofocus=True)
            with gr.Column(scale=2):
                slider = gr.Slider(
                    0,
                    1,
                    value=threshold,
                    step=0.001,
                    label="Defer to a human below this score",
                )
        button = gr.Button("Classify", variant="primary")
        decision = gr.Textbox(first["verdict"], label="Decision", lines=2, interactive=False, elem_id="verdict")
        with gr.Row():
            averaged = gr.Label(
                first["averaged"],
                label=f"SWAG: {_count(predict)} averaged, temperature {predict.sampling.temperature:.3g}",
                num_top_classes=SHOWN_CLASSES,
                show_heading=False,
                min_width=300,
                elem_id="averaged",
            )
            mean = gr.Label(
                first["mean"],
                label="Posterior mean (SWA): one prediction, temperature 1",
                num_top_classes=SHOWN_CLASSES,
                show_heading=False,
                min_width=300,
                elem_id="mean",
            )
            trained = gr.Label(
                first["trained"],
                label="The adapter's own weights, as trained (MAP): one prediction, temperature 1",
                num_top_classes=SHOWN_CLASSES,
                show_heading=False,
                min_width=300,
                visible=predict.has_trained_weights,
                elem_id="trained",
            )
        description = gr.Textbox(first["uncertainty"], label="Uncertainty", lines=3, interactive=False, elem_id="uncertainty")
        plot = gr.ScatterPlot(
            first["points"],
            x="class",
            y="probability",
            color="by",
            color_title=" ",
            color_map={"one draw": "#3B8FD6", "average": "#E0701A"},  # for colour-blind people too; 3:1 on both backgrounds
            y_lim=[0, 1],
            sort=None,
            tooltip="all",
            height=360,
            label="How the draws disagree: a blue ring for each draw, an orange one for their average",
        )
        table = gr.Dataframe(
            first["table"], interactive=False, label="The same in numbers", wrap=True, datatype="str", elem_id="table"
        )
        gr.Textbox(about, label="Model, draws and tuning", lines=about.count("\n") + 1, interactive=False, elem_id="about")

        shown = [decision, averaged, mean, trained, description, plot, table]

        def show(typed: str, threshold: float) -> list[Any]:
            return _shown(predict, typed, threshold)

        for trigger in (button.click, box.submit, slider.release):
            trigger(show, [box, slider], shown, api_name=False)
    return page


def _shown(predict: PagePredictions, text: str, threshold: float) -> list[Any]:
    """Return the values of verdict, three labels, description, plot and table."""
    try:
        predictions = predict(text or "")
    except SwagError as error:
        return [str(error), None, None, None, "", None, None]
    trained = None if predictions.trained is None else predictions.by_name(predictions.trained)
    return [
        verdict(predictions, predict.decision(threshold)),
        predictions.by_name(predictions.probabilities),
        predictions.by_name(predictions.mean),
        trained,
        uncertainty(predictions),
        points(predictions),
        table_of_draws(predictions),
    ]


def points(predictions: TextPredictions) -> pd.DataFrame:
    """Return the points of the plot: one for each draw and likely class, and one for the average."""
    import pandas as pd

    rows = []
    for place, index in enumerate(predictions.likeliest(SHOWN_CLASSES)):
        name = f"{place + 1}. {_shortened(predictions.labels[index])}"  # the axis sorts by name
        rows += [(name, float(value), "one draw") for value in predictions.draws[:, index]]
        rows.append((name, float(predictions.probabilities[index]), "average"))
    return pd.DataFrame(rows, columns=["class", "probability", "by"])


def table_of_draws(predictions: TextPredictions) -> pd.DataFrame:
    """Return the table: the average, first, and a row for each draw; a column for each likely class."""
    import pandas as pd

    top = predictions.likeliest(SHOWN_CLASSES)
    rows = [["average", *(f"{value:.3f}" for value in predictions.probabilities[top])]]
    rows += [[str(number + 1), *(f"{value:.3f}" for value in draw[top])] for number, draw in enumerate(predictions.draws)]
    return pd.DataFrame(rows, columns=["draw", *(predictions.labels[index] for index in top)])


def _shortened(name: str) -> str:
    """Leave out the middle of a long name: those of one data set often begin alike."""
    half = _AXIS_CHARACTERS // 2
    return name if len(name) <= _AXIS_CHARACTERS else f"{name[: half - 1]}…{name[-half:]}"


def _count(predict: PagePredictions) -> str:
    if predict.sampling.scale == 0:
        return "scale 0, one prediction, nothing"
    return f"{predict.sampling.num_samples} draws"


@contextmanager
def _environment_as_it_was() -> Iterator[None]:
    """gradio without telemetry also switches off that of huggingface_hub, by a variable that child processes would inherit."""
    name = "HF_HUB_DISABLE_TELEMETRY"
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
