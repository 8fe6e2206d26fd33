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
from swag_trainer.cli.page_predictions import MOST_CHARACTERS, PagePredictions, TextPredictions
from swag_trainer.cli.page_sentences import circumstances, uncertainty, verdict
from swag_trainer.cli.page_thresholds import OWN
from swag_trainer.errors import SwagError
from swag_trainer.evaluation.colours import colour_of

if TYPE_CHECKING:
    import gradio as gr
    import pandas as pd

    from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline

SHOWN_CLASSES = 5
_AXIS_CHARACTERS = 16  # of a class's name below the plot, where five stand side by side, on a phone too
_DRAWS_COLOUR = "#8A8A8A"  # stands out from both backgrounds by 3 : 1, as the colour of SWAG does
# A name without spaces would push the probability after it out of its box.
_CSS = "#averaged dt, #mean dt, #trained dt { overflow-wrap: anywhere; font-size: 0.9em; }"
_OUTPUTS = ("verdict", "averaged", "mean", "trained", "uncertainty", "points", "table")
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
    thresholds = [each.name for each in predict.thresholds.offered]
    threshold = round(predict.thresholds.first.threshold, 3)
    chosen = thresholds[0] if thresholds else OWN
    # Predicted here, not on the browser's first request: the page opens with everything in place.
    values = _values(predict, text, threshold, chosen) if text else {}
    first: dict[str, Any] = dict.fromkeys(_OUTPUTS) | values
    with environment_as_it_was():
        page = gr.Blocks(title=title, analytics_enabled=False)
    with page:
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column(scale=3):
                box = gr.Textbox(text, label="Text", lines=3, max_length=MOST_CHARACTERS, autofocus=True)
            with gr.Column(scale=2):
                goals = gr.Dropdown(
                    [*thresholds, OWN],
                    value=chosen,
                    label="Calibrated threshold",
                    visible=bool(thresholds),
                    elem_id="goals",
                )
                slider = gr.Slider(0, 1, value=threshold, step=0.001, label="Defer to a human below this score")
        button = gr.Button("Classify", variant="primary")
        decision = gr.Textbox(first["verdict"] or "", label="Decision", lines=2, interactive=False, elem_id="verdict")
        results = gr.Column(visible=bool(values.get("averaged")), elem_id="results")
        with results, gr.Row():
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
        with results:
            description = gr.Textbox(
                first["uncertainty"] or "", label="Uncertainty", lines=3, interactive=False, elem_id="uncertainty"
            )
            plot = gr.ScatterPlot(
                first["points"],
                x="class",
                y="probability",
                color="by",
                color_title=" ",
                colors_in_legend=[],  # the label names them
                color_map={"one draw": _DRAWS_COLOUR, "average": colour_of("SWAG")},
                y_lim=[0, 1],
                x_title=" ",
                x_label_angle=-40,
                sort=None,
                tooltip="all",
                height=400,
                label="Each draw (grey) and their average (orange)",  # one line on a phone: the plot is cut by a second one
                elem_id="plot",
            )
            table = gr.Dataframe(
                first["table"],
                interactive=False,
                label="The same in numbers",
                wrap=True,
                datatype="str",
                column_widths=[f"{width}px" for width in (170, *[84] * (1 + predict.num_predictions))],
                pinned_columns=1,
                elem_id="table",
            )
        gr.Textbox(about, label="Model, draws and tuning", lines=about.count("\n") + 1, interactive=False, elem_id="about")

        shown = [results, decision, averaged, mean, trained, description, plot, table]

        def show(typed: str, score: float, goal: str) -> list[Any]:
            found = _values(predict, typed, score, goal)
            return [gr.Column(visible="averaged" in found), *(dict.fromkeys(_OUTPUTS) | found).values()]

        def choose(typed: str, score: float, goal: str) -> list[Any]:
            for each in predict.thresholds.offered:
                if each.name == goal:
                    score = round(each.decision.threshold, 3)
            return [score, *show(typed, score, goal)]

        def slide(typed: str, score: float) -> list[Any]:
            return [OWN, *show(typed, score, OWN)]

        for trigger in (button.click, box.submit):
            trigger(show, [box, slider, goals], shown, api_name=False)
        goals.input(choose, [box, slider, goals], [slider, *shown], api_name=False)
        slider.release(slide, [box, slider], [goals, *shown], api_name=False)
    return page


def _values(predict: PagePredictions, text: str, threshold: float, goal: str) -> dict[str, Any]:
    """Return the values of the outputs by their names; of a text that cannot be classified the verdict alone."""
    try:
        predictions = predict(text or "")
    except SwagError as error:
        return {"verdict": str(error)}
    trained = None if predictions.trained is None else _breakable(predictions.by_name(predictions.trained))
    return {
        "verdict": verdict(predictions, predict.thresholds.decision(threshold, goal)),
        "averaged": _breakable(predictions.by_name(predictions.probabilities)),
        "mean": _breakable(predictions.by_name(predictions.mean)),
        "trained": trained,
        "uncertainty": uncertainty(predictions),
        "points": points(predictions),
        "table": table_of_draws(predictions),
    }


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
    """Return the table: a row for each likely class; its name, the average, and a column for each draw."""
    import pandas as pd

    rows = [
        [
            breakable(predictions.labels[index]),
            f"{predictions.probabilities[index]:.3f}",
            *(f"{value:.3f}" for value in predictions.draws[:, index]),
        ]
        for index in predictions.likeliest(SHOWN_CLASSES)
    ]
    return pd.DataFrame(rows, columns=["class", "average", *(f"draw {number + 1}" for number in range(len(predictions.draws)))])


def breakable(name: str) -> str:
    """Let a long name be broken after an underscore, by a space of no width, rather than in the middle of a word."""
    return name.replace("_", "_\u200b")


def _breakable(probabilities: dict[str, float]) -> dict[str, float]:
    return {breakable(name): value for name, value in probabilities.items()}


def _shortened(name: str) -> str:
    """Leave out the middle of a long name: those of one data set often begin alike."""
    half = _AXIS_CHARACTERS // 2
    return name if len(name) <= _AXIS_CHARACTERS else f"{name[: half - 1]}…{name[-half:]}"


def _count(predict: PagePredictions) -> str:
    if predict.num_predictions == 1:
        return "scale 0, one prediction, nothing"
    return f"{predict.num_predictions} draws"


@contextmanager
def environment_as_it_was() -> Iterator[None]:
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
