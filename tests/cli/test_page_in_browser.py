"""The served page in headless Chromium: light, dark, on a phone, and with 77 classes. One browser for all cases."""

import io
import math
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import lora_model, trainer_for
from lively import lively, short_run, tuning_of
from playwright.sync_api import expect, sync_playwright
from transformers import BertTokenizerFast, pipeline

from swag_trainer import SwagCallback
from swag_trainer.cli.serve import ServeOptions, serve
from swag_trainer.evaluation.colours import colour_of
from swag_trainer.posterior.tuning import CalibratedThreshold

pytestmark = pytest.mark.slow

HOSTILE = """<img src=x onerror="document.title='owned'"> **bold** ${1+1}"""
TEXT = "<script>document.title='owned'</script> a very funny film"
DESKTOP, PHONE = {"width": 1200, "height": 1400}, {"width": 390, "height": 844}
BUSY = [f"{verb}_{what}" for verb in ("activate_my", "lost_or_stolen", "declined", "pending", "verify", "edit", "why_was") for what in (
    "card", "cash_withdrawal", "transfer_into_account", "top_up_by_bank_card", "identity", "exchange_rate", "refund_not_showing_up",
    "virtual_card", "direct_debit", "card_payment_fee", "passcode")]  # fmt: skip


@pytest.fixture(scope="module")
def folder(base_folder, texts, tmp_path_factory):
    """An adapter, its posterior and tokenizer, whose first class has a hostile name."""
    _, posterior, tokenizer = short_run(base_folder, texts, tmp_path_factory.mktemp("run"))
    where = tmp_path_factory.mktemp("model")
    record = replace(posterior.record, scale=2.0, labels=[HOSTILE, "neutral", "positive"])
    replace(posterior, record=record).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def busy_folder(base_folder, texts, tmp_path_factory):
    """The same with 77 classes of long names, and a tuning with thresholds."""
    tokenizer, swag = BertTokenizerFast.from_pretrained(base_folder), SwagCallback(rank=5)
    rows = [{**tokenizer(text), "labels": index % 77} for index, text in enumerate(texts)]
    trainer_for(
        lora_model(base_folder, num_labels=77), rows, tokenizer, tmp_path_factory.mktemp("run"), callbacks=[swag]
    ).train()
    posterior, where = lively(swag.posterior), tmp_path_factory.mktemp("busy")
    tuning = tuning_of(
        thresholds=[
            CalibratedThreshold("risk", 0.05, 0.0, 1.0, 0.0, level=0.9),
            CalibratedThreshold("coverage", 0.9, 0.99, 0.9, 0.1),
        ]
    )
    replace(posterior, record=replace(posterior.record, labels=BUSY, tuning=tuning)).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: the system's, else the one that playwright installed."""
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        executable = found or playwright.chromium.executable_path
        if not Path(executable).exists():
            pytest.skip("no Chromium here: install the system's, or run `playwright install chromium`")
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        expect.set_options(timeout=60_000)
        yield browser
        browser.close()


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def addresses(folder, busy_folder):
    """The addresses of three served pages, and what was printed."""
    out = io.StringIO()
    pages = {
        "text": serve(ServeOptions(model=str(folder), port=free_port(), num_samples=5, text=TEXT), block=False, out=out),
        "empty": serve(ServeOptions(model=str(folder), port=free_port(), num_samples=5), block=False, out=out),
        "busy": serve(ServeOptions(model=str(busy_folder), port=free_port(), text="a good film"), block=False, out=out),
    }
    yield {name: page.local_url for name, page in pages.items()} | {"printed": out.getvalue()}
    for page in pages.values():
        page.close()


@pytest.fixture
def opened(browser, addresses):
    """Open a page: its name, the size of the window, light or dark."""
    contexts = []

    def open_page(name, size=DESKTOP, theme="light"):
        contexts.append(browser.new_context(viewport=size))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{addresses[name]}?__theme={theme}")
        expect(page.get_by_role("button", name="Classify")).to_be_visible()
        if name != "empty":
            expect(page.locator("#verdict textarea")).not_to_be_empty()
            expect(page.locator("#averaged dd").first).to_be_visible()
            expect(page.locator("#plot canvas, #plot svg.marks").first).to_be_visible()
        page.wait_for_timeout(500)  # the plot is laid out anew once its fonts are there
        return page

    yield open_page
    for context in contexts:
        context.close()


def are_readable(labels, plot):
    """Whether the labels of an axis lie whole in the plot, and beside each other: turned, and far enough apart for their letters."""
    boxes, turns = [label.bounding_box() for label in labels], [label.get_attribute("transform") for label in labels]
    inside = all(box["x"] >= plot["x"] and box["y"] + box["height"] <= plot["y"] + plot["height"] for box in boxes)
    ends = sorted(box["x"] + box["width"] for box in boxes)
    gaps = [following - one for one, following in zip(ends, ends[1:], strict=False)]
    return inside and all("rotate(320)" in turn for turn in turns) and min(gaps) * math.sin(math.radians(40)) >= 14


def test_a_browser_shows_the_served_page_and_runs_nothing_of_what_was_typed(opened, addresses):
    # Red for: a page that does not load, a prediction that is not in it, markup of labels or texts that became elements or scripts.
    page = opened("text")
    expect(page).to_have_title("How certain is it?")
    for shown in (
        "SWAG: 5 draws averaged, temperature 1",
        "Posterior mean (SWA): one prediction, temperature 1",
        "Classify",
        "Defer to a human below this score",
    ):
        expect(page.get_by_text(shown, exact=True).first).to_be_visible()
    expect(page.locator("#averaged dt")).to_have_count(3)
    assert HOSTILE in page.locator("#averaged").inner_text()
    assert page.locator("img[src=x], strong").count() == 0
    assert TEXT in [box.input_value() for box in page.locator("textarea").all()]
    assert addresses["printed"].count("The page is at http://127.0.0.1:") == 3 and "share" not in addresses["printed"]


def test_a_typed_text_is_classified_after_a_click_and_every_probability_is_in_its_box(opened, folder):
    # Red for: a button that reaches no function, a prediction that reaches no box, a long name that pushes its probability out.
    (best,) = pipeline("swag-text-classification", model=str(folder), num_samples=5, device="cpu")("a bad film")
    page = opened("empty")
    for hidden in ("#averaged", "#plot", "#table"):
        expect(page.locator(f"{hidden}:visible")).to_have_count(0)
    page.get_by_label("Text", exact=True).fill("a bad film")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#verdict textarea")).to_have_value(
        re.compile(rf"^Label: {re.escape(best['label'])}\. Its score is {best['score']:.3f};")
    )
    expect(page.locator("#averaged dd")).to_have_count(3)
    right = page.locator("#averaged").bounding_box()
    for probability in page.locator("#averaged dd").all():
        box = probability.bounding_box()
        assert box["x"] + box["width"] < right["x"] + right["width"]
    expect(page.locator("#table")).to_be_visible()


@pytest.mark.parametrize(("name", "size"), [("text", PHONE), ("busy", PHONE), ("busy", DESKTOP)])
def test_nothing_is_wider_than_the_window_and_no_label_lies_over_another(opened, name, size):
    # Red for: a page that scrolls sideways, names of classes that overprint each other on the axis, columns too narrow for their words.
    page = opened(name, size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    labels = [label for label in page.locator("#plot svg.marks text").all() if re.match(r"\d\. ", label.text_content())]
    assert len(labels) == (3 if name == "text" else 5)
    assert are_readable(labels, page.locator("#plot").bounding_box())
    for cell in page.locator("#table th:visible, #table td:visible").all():
        for word in re.split(r"\s|\u200b", cell.inner_text()):
            assert cell.bounding_box()["width"] >= 6 * len(word[:20]), word


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_points_of_the_draws_and_of_the_average_stand_out_from_the_background(opened, theme):
    # Red for: colours that are lost on a dark page, a dark page that stays light, colours other than the method's elsewhere.
    page = opened("text", theme=theme)
    strokes = {
        point.get_attribute("stroke") or point.get_attribute("fill")
        for point in page.locator("#plot svg .mark-symbol path").all()
    }
    assert {colour.upper() for colour in strokes if colour} >= {"#8A8A8A", colour_of("SWAG")}
    background = page.evaluate("getComputedStyle(document.querySelector('#verdict textarea')).backgroundColor")
    levels = [int(level) for level in re.findall(r"\d+", background)[:3]]
    assert (min(levels) > 200) if theme == "light" else (max(levels) < 80)
