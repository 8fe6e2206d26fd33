import json
import os
import re
import socket
import subprocess
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from lively import short_run
from transformers import HfArgumentParser, pipeline

from swag_trainer import SwagError
from swag_trainer.cli.main import main
from swag_trainer.cli.page import LAUNCH, build_page, figures, points
from swag_trainer.cli.page_answers import Answering
from swag_trainer.cli.serve import ServeOptions, serve

HOSTILE = """<img src=x onerror="document.title='owned'"> **bold** ${1+1}"""
TEXT = "<script>document.title='owned'</script> a very funny film"


@pytest.fixture(scope="module")
def folder(base_folder, texts, tmp_path_factory):
    """What somebody would serve: an adapter, its posterior and tokenizer, whose first class has a hostile name."""
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


def test_the_page_shows_what_the_pipeline_says(classify):
    # Red for: outputs in another order than their components, or a mean that is the average.
    shown = shown_by(build_page(classify, text=TEXT))
    averaged, mean = classify(TEXT, top_k=None), classify(TEXT, top_k=None, scale=0)
    for name, rows in (("averaged", averaged), ("mean", mean)):
        values = {entry["label"]: entry["confidence"] for entry in shown[name]["confidences"]}
        assert values == {row["label"]: row["score"] for row in rows}
    assert shown["verdict"].startswith(f"Answer: {averaged[0]['label']}.")
    assert f"Entropy {averaged[0]['entropy']:.3f} nats" in shown["uncertainty"]
    assert "5 draws (seed 0)" in shown["about"] and "scale 2" in shown["about"]


def test_the_button_answers_anew_and_the_slider_hands_over(classify):
    # Red for: a button that is not wired to the text and the slider, an error page in place of a sentence.
    page = build_page(classify, text=TEXT)
    functions = [dependency.fn for dependency in page.fns.values()]
    assert len(functions) == 3  # button, Enter, slider
    for answer in functions:
        said, averaged, *_ = answer("a bad film", 1.0)
        (best,) = classify("a bad film")
        assert said.startswith("Hand over to a person.") and best["label"] in said
        assert averaged[best["label"]] == best["score"]
        assert answer("a bad film", 0.0)[0].startswith("Answer:")
        assert answer("", 0.0)[:3] == ["There is nothing to classify: type a text.", None, None]


def test_plot_and_table_have_every_draw_of_the_likeliest_classes(classify):
    # Red for: draws of another class, the average missing or out of sight, classes in another order than that of their probability,
    # names on the axis that are as long as a text or that lost the end that tells them apart.
    answer = Answering(classify)(TEXT)
    order = np.argsort(-answer.probabilities)
    table = figures(answer)
    assert list(table.columns) == ["draw", *(answer.labels[index] for index in order)]
    assert table["draw"].tolist() == ["average", "1", "2", "3", "4", "5"]
    np.testing.assert_allclose(table.iloc[0, 1:].astype(float), answer.probabilities[order], atol=5e-4)
    np.testing.assert_allclose(table.iloc[1:, 1:].astype(float), answer.draws[:, order], atol=5e-4)
    plotted = points(answer)
    best = plotted[plotted["class"].str.startswith("1. ")]
    assert best[best["by"] == "one draw"]["probability"].tolist() == answer.draws[:, order[0]].tolist()
    assert best[best["by"] == "average"]["probability"].tolist() == [answer.probabilities.max()]
    names = {HOSTILE: "<img src=…d** ${1+1}", "neutral": "neutral", "positive": "positive"}
    assert list(dict.fromkeys(plotted["class"])) == [
        f"{place + 1}. {names[answer.labels[index]]}" for place, index in enumerate(order)
    ]


def test_nothing_that_reads_markup_is_given_strings_of_strangers_and_nobody_is_told(classify, monkeypatch):
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
    assert [block.value for block in reading] == ["# How sure is it?"]
    for block in page.blocks.values():
        assert HOSTILE not in str(getattr(block, "label", "")) + str(getattr(block, "info", ""))


def test_the_options_are_read_as_transformers_reads_its_own(tmp_path):
    # Red for: a default that opens the page to others, an option that cannot be given.
    (options,) = HfArgumentParser(ServeOptions).parse_args_into_dataclasses(["--model", "me/model", "--num_samples", "4"])
    assert options == ServeOptions(model="me/model", num_samples=4)
    assert (options.host, options.share) == ("127.0.0.1", False)
    with pytest.raises(ValueError, match="between 0 and 65535"):
        ServeOptions(model="me/model", port=70_000)


def test_a_folder_that_does_not_exist_is_refused_as_in_every_command(tmp_path, capsys):
    # Red for: what transformers says, which takes the path for the id of a repository.
    assert main(["serve", str(tmp_path / "nowhere")]) == 1
    assert "is neither a folder that exists nor the id of a repository" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused_in_a_sentence(folder):
    # Red for: gradio's own traceback, or another port than the one asked for.
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with pytest.raises(SwagError, match="Choose another port"):
            serve(ServeOptions(model=str(folder), port=listening.getsockname()[1]), block=False)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs headless Chromium")
def test_a_browser_shows_the_served_page_and_runs_nothing_of_what_was_typed(folder, tmp_path):
    # Red for: a page that does not load, an answer that is not in it, markup of labels or texts that became elements or scripts.
    port = free_port()
    page = serve(ServeOptions(model=str(folder), port=port, num_samples=5, text=TEXT), block=False)
    try:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1400", "--virtual-time-budget=20000"]
        result = subprocess.run(
            [CHROMIUM, *options, f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", f"http://127.0.0.1:{port}/"],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
    finally:
        page.close()
    dom = result.stdout
    assert "<title>How sure is it?" in dom
    for shown in (
        "SWAG: 5 draws averaged, temperature 1",
        "Posterior mean (SWA): one answer, temperature 1",
        "Classify",
        "Hand over to a person below this score",
    ):
        assert shown in dom, shown
    elements = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)  # gradio's own scripts hold the same strings in quotes
    assert elements.count("&lt;img src=x onerror=") >= 3 and "<img src=x" not in elements and "<strong>" not in elements
    assert "<script>document.title" not in dom
    assert (tmp_path / "page.png").stat().st_size > 30_000


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs headless Chromium")
def test_a_text_that_is_typed_is_answered_after_a_click_and_every_probability_is_in_its_box(folder, classify, tmp_path):
    # Red for: a button that reaches no function, an answer that reaches no box, a long name that pushes its probability out.
    (best,) = classify("a bad film")
    page = serve(ServeOptions(model=str(folder), port=free_port(), num_samples=5, text=TEXT), block=False)
    verdict = "document.querySelector('#verdict textarea').value"
    try:
        with Browser(tmp_path / "profile", page.local_url) as browser:
            first = browser.wait_for("document.querySelector('#verdict textarea')?.value")
            # How far each of three probabilities reaches over the right edge of its box.
            reaching = """[...document.querySelectorAll('#averaged dd')].map(
                e => e.getBoundingClientRect().right - document.querySelector('#averaged').getBoundingClientRect().right)"""
            assert max(browser.wait_for(f"(them => them.length == 3 && them)({reaching})")) < 0
            browser.click("document.querySelector('textarea')")
            browser.says("document.querySelector('textarea').select()")
            browser.type("a bad film")
            browser.click("[...document.querySelectorAll('button')].find(button => button.textContent.trim() == 'Classify')")
            said = browser.wait_for(f"(now => now != {json.dumps(first)} && now)({verdict})")
    finally:
        page.close()
    assert best["label"] in said and f"{best['score']:.3f}" in said
