import os
import socket
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
from lively import short_run, tuning_of
from transformers import HfArgumentParser, pipeline

from swag_trainer import SwagError, SwagPosterior
from swag_trainer.cli.main import main
from swag_trainer.cli.page import LAUNCH, breakable, build_page, points, table_of_draws
from swag_trainer.cli.page_predictions import PagePredictions
from swag_trainer.cli.page_thresholds import OWN
from swag_trainer.cli.serve import ServeOptions, serve
from swag_trainer.posterior.tuning import CalibratedThreshold

HOSTILE = """<img src=x onerror="document.title='owned'"> **bold** ${1+1}"""
TEXT = "<script>document.title='owned'</script> a very funny film"


@pytest.fixture(scope="module")
def folder(base_folder, texts, tmp_path_factory):
    """What a user serves: an adapter, its posterior and tokenizer, whose first class has a hostile name."""
    _, posterior, tokenizer = short_run(base_folder, texts, tmp_path_factory.mktemp("run"))
    labels = [HOSTILE, "neutral", "positive"]
    where = tmp_path_factory.mktemp("model")
    replace(posterior, record=replace(posterior.record, scale=2.0, labels=labels)).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def classify(folder):
    return pipeline("swag-text-classification", model=str(folder), num_samples=5, device="cpu")


def shown_by(page):
    """Values of the page's components by elem_id."""
    return {
        block.elem_id: block.value
        for block in page.blocks.values()
        if getattr(block, "elem_id", None) and hasattr(block, "value")
    }


def test_the_page_shows_what_the_pipeline_predicts(classify):
    # Red for: outputs in another order than their components, or a mean that is the average.
    shown = shown_by(build_page(classify, text=TEXT))
    averaged, mean = classify(TEXT, top_k=None), classify(TEXT, top_k=None, scale=0)
    for name, rows in (("averaged", averaged), ("mean", mean)):
        values = {entry["label"]: entry["confidence"] for entry in shown[name]["confidences"]}
        assert values == {row["label"]: row["score"] for row in rows}
    assert shown["verdict"].startswith(f"Label: {averaged[0]['label']}.")
    assert f"Entropy {averaged[0]['entropy']:.3f} nats" in shown["uncertainty"]
    assert "5 draws (seed 0)" in shown["about"] and "scale 2" in shown["about"]


def test_the_button_predicts_anew_and_the_slider_defers(classify):
    # Red for: a button that is not wired to the text and the slider, an error page in place of a sentence.
    page = build_page(classify, text=TEXT)
    functions = [dependency.fn for dependency in page.fns.values()]
    button, enter, goals, slider = functions
    (best,) = classify("a bad film")
    for show, before in (
        (lambda text, score: button(text, score, OWN), []),
        (lambda text, score: enter(text, score, OWN), []),
        (lambda text, score: goals(text, score, OWN), [0.0]),  # a threshold of one's own leaves the slider where it is
        (slider, [OWN]),
    ):
        *first, results, shown, averaged = show("a bad film", 1.0)[: 3 + len(before)]
        assert first == ([1.0] if before == [0.0] else before)
        assert shown.startswith("Defer to a human.") and best["label"] in shown
        assert averaged[best["label"]] == best["score"] and results.visible
        assert show("a bad film", 0.0)[1 + len(before)].startswith("Label:")
        *_, results, shown, averaged = show("", 0.0)[: 3 + len(before)]
        assert (shown, averaged, results.visible) == ("There is nothing to classify: type a text.", None, False)


def test_an_empty_page_shows_no_empty_results_and_a_page_with_a_text_does(classify):
    # Red for: a table of three columns without a name, a plot without points.
    for text in ("", TEXT):
        (results,) = [block for block in build_page(classify, text=text).blocks.values() if block.elem_id == "results"]
        assert results.visible == bool(text)
        inside = {type(child).__name__ for child in results.children}
        assert {"ScatterPlot", "Dataframe"} <= inside


def test_calibrated_thresholds_are_offered_and_move_the_slider(folder):
    # Red for: a list without the coverages, a choice that leaves the slider or the decision as it was.
    tuned = SwagPosterior.from_pretrained(folder)
    records = [
        CalibratedThreshold("coverage", 0.9, 0.36, 0.9, 0.1),
        CalibratedThreshold("risk", 0.05, 0.0, 1.0, 0.0, level=0.9),
    ]
    tuned = replace(tuned, record=replace(tuned.record, tuning=tuning_of(thresholds=records)))
    page = build_page(pipeline("swag-text-classification", model=str(folder), posterior=tuned, device="cpu"), text=TEXT)
    (goals,) = [block for block in page.blocks.values() if block.elem_id == "goals"]
    names = [name for name, _ in goals.choices]
    assert names == ["at most 5 % wrong (score 0.000)", "at least 90 % labelled (score 0.360)", OWN]
    assert goals.value == names[0] and goals.visible
    choose = [dependency.fn for dependency in page.fns.values()][2]
    moved, _, shown, *_ = choose("a bad film", 0.0, names[1])
    assert moved == 0.36 and "at least 0.9 of" in shown
    assert "at most 0.05 of" in choose("a bad film", 0.2, names[0])[2]


def test_plot_and_table_have_every_draw_of_the_likeliest_classes(classify):
    # Red for: draws of another class, the average missing or out of sight, classes in another order than that of their probability,
    # names on the axis that are as long as a text or that lost the end that tells them apart.
    predictions = PagePredictions(classify)(TEXT)
    order = np.argsort(-predictions.probabilities)
    table = table_of_draws(predictions)
    assert list(table.columns) == ["class", "average", "draw 1", "draw 2", "draw 3", "draw 4", "draw 5"]
    assert table["class"].tolist() == [predictions.labels[index] for index in order]
    np.testing.assert_allclose(table["average"].astype(float), predictions.probabilities[order], atol=5e-4)
    np.testing.assert_allclose(table.iloc[:, 2:].astype(float), predictions.draws[:, order].T, atol=5e-4)
    plotted = points(predictions)
    best = plotted[plotted["class"].str.startswith("1. ")]
    assert best[best["by"] == "one draw"]["probability"].tolist() == predictions.draws[:, order[0]].tolist()
    assert best[best["by"] == "average"]["probability"].tolist() == [predictions.probabilities.max()]
    assert breakable("lost_or_stolen card") == "lost_\u200bor_\u200bstolen card"
    names = {HOSTILE: "<img sr…* ${1+1}", "neutral": "neutral", "positive": "positive"}
    assert list(dict.fromkeys(plotted["class"])) == [
        f"{place + 1}. {names[predictions.labels[index]]}" for place, index in enumerate(order)
    ]


def test_nothing_that_reads_markup_gets_untrusted_input_and_there_is_no_telemetry(classify, monkeypatch):
    # Red for: a label or a text in Markdown, HTML or an info line; telemetry; a changed environment; texts kept by the browser.
    for before in ("as it was", None):
        if before is None:
            monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
        else:
            monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", before)
        page = build_page(classify, text=TEXT, name=HOSTILE)
        assert os.environ.get("HF_HUB_DISABLE_TELEMETRY") == before
    assert page.analytics_enabled is False
    assert LAUNCH["run_history"] is False and LAUNCH["share"] is False
    reading = [block for block in page.blocks.values() if isinstance(block, (gr.Markdown, gr.HTML))]
    assert [block.value for block in reading] == ["# How certain is it?"]
    for block in page.blocks.values():
        assert HOSTILE not in str(getattr(block, "label", "")) + str(getattr(block, "info", ""))


def test_the_options_are_read_as_transformers_reads_its_own(tmp_path):
    # Red for: a default that opens the page to others, an option that cannot be given.
    (options,) = HfArgumentParser(ServeOptions).parse_args_into_dataclasses(["--model", "me/model", "--num_samples", "4"])
    assert options == ServeOptions(model="me/model", num_samples=4)
    assert (options.host, options.share) == ("127.0.0.1", False)
    with pytest.raises(SwagError, match="between 0 and 65535"):
        ServeOptions(model="me/model", port=70_000)


def test_a_folder_that_does_not_exist_is_refused_as_in_every_command(tmp_path, capsys):
    # Red for: transformers' own error, which takes the path for the id of a repository.
    assert main(["serve", str(tmp_path / "nowhere")]) == 1
    assert "There is no file or folder" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused_in_a_sentence(folder):
    # Red for: gradio's own traceback, or another port than the one asked for.
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with pytest.raises(SwagError, match="Choose another --port"):
            serve(ServeOptions(model=str(folder), port=listening.getsockname()[1]), block=False)
