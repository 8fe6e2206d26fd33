"""The page of `swag-trainer serve`, which a Space runs as well. Its app.py, beside a requirements.txt with ``swag-trainer[demo]``:

    from transformers import pipeline
    from swag_trainer.cli.page import LAUNCH, build_page
    build_page(pipeline("swag-text-classification", model="me/roberta-sst2-swag")).launch(**LAUNCH)

What a user types and what a repository says (labels, names) is shown as text: in text boxes, labels, cells and on the axis of a plot, never
in Markdown, HTML or the title of a component.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from swag_trainer.cli.page_answers import MOST_CHARACTERS, Answer, Answering, circumstances, uncertainty, verdict
from swag_trainer.errors import SwagError

if TYPE_CHECKING:
    import gradio as gr
    import pandas as pd

    from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline

SHOWN_CLASSES = 5
_AXIS_CHARACTERS = 20  # of a class's name below the plot, where five stand side by side
# A name without spaces would push the probability after it out of its box.
_CSS = "#averaged dt, #mean dt, #trained dt { overflow-wrap: anywhere; }"
# Texts stay where they were typed: no history in the browser, no public link, no second server process, no links to elsewhere.
LAUNCH: dict[str, Any] = {"share": False, "run_history": False, "ssr_mode": False, "footer_links": [], "css": _CSS}


def build_page(
    classify: SwagTextClassificationPipeline, *, name: str | None = None, text: str = "", title: str = "How sure is it?"
) -> gr.Blocks:
    """Build the page of a pipeline; ``launch(**LAUNCH)`` serves it.

    Args:
        classify: The pipeline "swag-text-classification" of a classifier whose classes exclude each other. Draws, scale, temperature and
            threshold are those that it was given, or those of its posterior.
        name: What the model is called on the page; where it was loaded from unless told otherwise.
        text: What stands in the box at first, and is answered when the page opens.
        title: Heading of the page, in Markdown.

    Raises:
        SwagError: gradio is not installed, or the model is for several labels at once or a regression.
    """
    gr = _gradio()
    answering = Answering(classify)
    name = name or str(getattr(classify.model, "name_or_path", "")) or "The model"
    about = circumstances(answering, name)
    threshold = round(answering.first_decision.threshold, 3)
    # Answered here, not by the browser's first request: the page opens with everything in place.
    answered = _shown(answering, text, threshold) if text else ["", None, None, None, "", None, None]
    first = dict(zip(("said", "averaged", "mean", "trained", "words", "points", "figures"), answered, strict=True))
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
                    label="Hand over to a person below this score",
                )
        button = gr.Button("Classify", variant="primary")
        said = gr.Textbox(first["said"], label="What happens", lines=2, interactive=False, elem_id="verdict")
        with gr.Row():
            averaged = gr.Label(
                first["averaged"],
                label=f"SWAG: {_count(answering)} averaged, temperature {answering.request.temperature:.3g}",
                num_top_classes=SHOWN_CLASSES,
                show_heading=False,
                min_width=300,
                elem_id="averaged",
            )
            mean = gr.Label(
                first["mean"],
                label="Posterior mean (SWA): one answer, temperature 1",
                num_top_classes=SHOWN_CLASSES,
                show_heading=False,
                min_width=300,
                elem_id="mean",
            )
            trained = gr.Label(
                first["trained"],
                label="The adapter's own weights, as trained (MAP): one answer, temperature 1",
                num_top_classes=SHOWN_CLASSES,
                show_heading=False,
                min_width=300,
                visible=answering.has_trained_weights,
                elem_id="trained",
            )
        words = gr.Textbox(first["words"], label="How sure it is", lines=3, interactive=False, elem_id="uncertainty")
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
            label="How the draws disagree: a blue ring for what each draw says, an orange one for their average",
        )
        table = gr.Dataframe(
            first["figures"], interactive=False, label="The same in figures", wrap=True, datatype="str", elem_id="figures"
        )
        gr.Textbox(about, label="What answers here", lines=about.count("\n") + 1, interactive=False, elem_id="about")

        shown = [said, averaged, mean, trained, words, plot, table]

        def show(typed: str, threshold: float) -> list[Any]:
            return _shown(answering, typed, threshold)

        for trigger in (button.click, box.submit, slider.release):
            trigger(show, [box, slider], shown, api_name=False)
    return page


def _shown(answering: Answering, text: str, threshold: float) -> list[Any]:
    """The values of verdict, three labels, words, plot and table."""
    try:
        answer = answering(text or "")
    except SwagError as error:
        return [str(error), None, None, None, "", None, None]
    decision = answering.decision(threshold)
    trained = None if answer.trained is None else answer.by_name(answer.trained)
    return [
        verdict(answer, decision),
        answer.by_name(answer.probabilities),
        answer.by_name(answer.mean),
        trained,
        uncertainty(answer),
        points(answer),
        figures(answer),
    ]


def points(answer: Answer) -> pd.DataFrame:
    """Return what the plot shows: a point for each draw and likely class, and one for the average."""
    import pandas as pd

    rows = []
    for place, index in enumerate(answer.likeliest(SHOWN_CLASSES)):
        name = f"{place + 1}. {_shortened(answer.labels[index])}"  # the axis sorts by name
        rows += [(name, float(value), "one draw") for value in answer.draws[:, index]]
        rows.append((name, float(answer.probabilities[index]), "average"))
    return pd.DataFrame(rows, columns=["class", "probability", "by"])


def figures(answer: Answer) -> pd.DataFrame:
    """Return the table: the average, which stays in sight above many draws, and a row for each draw; a column for each likely class."""
    import pandas as pd

    top = answer.likeliest(SHOWN_CLASSES)
    rows = [["average", *(f"{value:.3f}" for value in answer.probabilities[top])]]
    rows += [[str(number + 1), *(f"{value:.3f}" for value in draw[top])] for number, draw in enumerate(answer.draws)]
    return pd.DataFrame(rows, columns=["draw", *(answer.labels[index] for index in top)])


def _shortened(name: str) -> str:
    """Leave out the middle of a long name: those of one data set often begin alike."""
    half = _AXIS_CHARACTERS // 2
    return name if len(name) <= _AXIS_CHARACTERS else f"{name[: half - 1]}…{name[-half:]}"


def _count(answering: Answering) -> str:
    if answering.request.scale == 0:
        return "scale 0, one answer, nothing"
    return f"{answering.request.num_samples} draws"


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise SwagError('The page needs gradio: pip install "swag-trainer[demo]".') from error
    return gradio


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
