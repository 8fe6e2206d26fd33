import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from lively import short_run
from playwright.sync_api import expect, sync_playwright
from transformers import HfArgumentParser, pipeline

from swag_trainer import SwagError
from swag_trainer.cli.main import main
from swag_trainer.cli.page import LAUNCH, build_page, points, table_of_draws
from swag_trainer.cli.page_predictions import PagePredictions
from swag_trainer.cli.serve import ServeOptions, serve

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


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def shown_by(page):
    """Values of the page's components by elem_id."""
    return {block.elem_id: block.value for block in page.blocks.values() if getattr(block, "elem_id", None)}


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
    assert len(functions) == 3  # button, Enter, slider
    for show in functions:
        shown, averaged, *_ = show("a bad film", 1.0)
        (best,) = classify("a bad film")
        assert shown.startswith("Defer to a human.") and best["label"] in shown
        assert averaged[best["label"]] == best["score"]
        assert show("a bad film", 0.0)[0].startswith("Label:")
        assert show("", 0.0)[:3] == ["There is nothing to classify: type a text.", None, None]


def test_plot_and_table_have_every_draw_of_the_likeliest_classes(classify):
    # Red for: draws of another class, the average missing or out of sight, classes in another order than that of their probability,
    # names on the axis that are as long as a text or that lost the end that tells them apart.
    predictions = PagePredictions(classify)(TEXT)
    order = np.argsort(-predictions.probabilities)
    table = table_of_draws(predictions)
    assert list(table.columns) == ["draw", *(predictions.labels[index] for index in order)]
    assert table["draw"].tolist() == ["average", "1", "2", "3", "4", "5"]
    np.testing.assert_allclose(table.iloc[0, 1:].astype(float), predictions.probabilities[order], atol=5e-4)
    np.testing.assert_allclose(table.iloc[1:, 1:].astype(float), predictions.draws[:, order], atol=5e-4)
    plotted = points(predictions)
    best = plotted[plotted["class"].str.startswith("1. ")]
    assert best[best["by"] == "one draw"]["probability"].tolist() == predictions.draws[:, order[0]].tolist()
    assert best[best["by"] == "average"]["probability"].tolist() == [predictions.probabilities.max()]
    names = {HOSTILE: "<img src=…d** ${1+1}", "neutral": "neutral", "positive": "positive"}
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
    assert "is neither a folder that exists nor the id of a repository" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused_in_a_sentence(folder):
    # Red for: gradio's own traceback, or another port than the one asked for.
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with pytest.raises(SwagError, match="Choose another --port"):
            serve(ServeOptions(model=str(folder), port=listening.getsockname()[1]), block=False)


@pytest.fixture
def browser_page():
    """A page of headless Chromium: the system's, else the one that playwright installed."""
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        executable = found or playwright.chromium.executable_path
        if not Path(executable).exists():
            pytest.skip("no Chromium here: install the system's, or run `playwright install chromium`")
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport={"width": 1200, "height": 1400})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def served(folder):
    """The address of the page."""
    page = serve(ServeOptions(model=str(folder), port=free_port(), num_samples=5, text=TEXT), block=False)
    yield page.local_url
    page.close()


@pytest.mark.slow
def test_a_browser_shows_the_served_page_and_runs_nothing_of_what_was_typed(served, browser_page):
    # Red for: a page that does not load, a prediction that is not in it, markup of labels or texts that became elements or scripts.
    browser_page.goto(served)
    expect(browser_page.locator("#verdict textarea")).not_to_be_empty()
    expect(browser_page).to_have_title("How certain is it?")
    for shown in (
        "SWAG: 5 draws averaged, temperature 1",
        "Posterior mean (SWA): one prediction, temperature 1",
        "Classify",
        "Defer to a human below this score",
    ):
        expect(browser_page.get_by_text(shown, exact=True).first).to_be_visible()
    expect(browser_page.locator("#averaged dt")).to_have_count(3)
    assert HOSTILE in browser_page.locator("#averaged").inner_text()
    assert browser_page.locator("img[src=x], strong").count() == 0
    assert TEXT in [box.input_value() for box in browser_page.locator("textarea").all()]
    assert len(browser_page.screenshot()) > 30_000


@pytest.mark.slow
def test_a_typed_text_is_classified_after_a_click_and_every_probability_is_in_its_box(served, classify, browser_page):
    # Red for: a button that reaches no function, a prediction that reaches no box, a long name that pushes its probability out.
    (best,) = classify("a bad film")
    browser_page.goto(served)
    expect(browser_page.locator("#averaged dd")).to_have_count(3)
    right = browser_page.locator("#averaged").bounding_box()
    for probability in browser_page.locator("#averaged dd").all():
        box = probability.bounding_box()
        assert box["x"] + box["width"] < right["x"] + right["width"]
    browser_page.get_by_label("Text", exact=True).fill("a bad film")
    browser_page.get_by_role("button", name="Classify").click()
    expect(browser_page.locator("#verdict textarea")).to_have_value(
        re.compile(rf"^Label: {re.escape(best['label'])}\. Its score is {best['score']:.3f};"), timeout=60_000
    )
