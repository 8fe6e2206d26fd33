"""The page of `swag-trainer serve` for tasks other than text classification: its fields, its table, and what it refuses."""

import pytest
from choices import questions
from gradio_client import Client
from PIL import Image
from task_posteriors import save_posteriors
from transformers import pipeline

from swag_trainer import SwagError
from swag_trainer.cli.serve import ServeOptions, _page, serve
from swag_trainer.cli.task_page import build_task_page, prediction_of

HOSTILE = """<img src=x onerror="document.title='owned'"> **bold**"""


@pytest.fixture(scope="module")
def folders(base_folder, tmp_path_factory):
    return save_posteriors(base_folder, tmp_path_factory.mktemp("tasks"))


def load(task, folder):
    return pipeline(task, model=folder, num_samples=3, device="cpu")


def button_of(page):
    (dependency,) = page.fns.values()
    return dependency.fn


def test_the_choices_of_a_question_stand_in_the_table_with_their_uncertainty(folders):
    # Red for: choices that are one text, the best choice alone, numbers of another draw count, markup that a cell renders.
    choose, question = load("swag-multiple-choice-encoder", folders.questions), questions(1)[0]
    page = build_task_page(choose, name="me/choices")
    message, table = button_of(page)(question["question"], "\n".join([*question["choices"], HOSTILE, ""]))
    expected = choose({"question": question["question"], "choices": [*question["choices"], HOSTILE]}, top_k=None)
    assert not message.visible and table.visible and table.datatype == "str"
    assert [row[1] for row in table.value["data"]] == [each["choice"] for each in expected]
    assert [row[2] for row in table.value["data"]] == [f"{each['score']:.3f}" for each in expected]
    assert table.value["headers"][-1] == "mutual_information"


def test_an_empty_field_and_what_the_pipeline_refuses_are_messages(folders):
    # Red for: an error page in the place of a sentence, a table of the question before.
    choose = load("swag-multiple-choice-encoder", folders.questions)
    for values, words in (
        (("", "a\nb"), "Question: there is nothing yet"),
        (("why", "one"), "choices"),
        (("why", "a\n" * 51), "at most 50"),
    ):
        message, table = button_of(build_task_page(choose, name="x"))(*values)
        assert words in message.value and message.visible and not table.visible
    with pytest.raises(SwagError, match="has no page"):
        build_task_page(type("Other", (), {"task": "swag-speech"})(), name="x")


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_several_labels_and_a_regression_have_a_page(problem_type, folders, monkeypatch):
    # Red for: a page that refuses what the pipeline predicts, the likeliest label alone, a score without what is uncertain about it.
    judge = load("swag-text-classification", folders.nli)
    judge.model.config.problem_type = problem_type
    monkeypatch.setattr("swag_trainer.cli.serve.load_pipeline", lambda *_, **__: judge)
    page = _page(ServeOptions(model=folders.nli))
    message, table = button_of(page)("good film")
    assert not message.visible and len(table.value["data"]) == 3
    expected = judge("good film", top_k=None)
    assert [row[0] for row in table.value["data"]] == [each["label"] for each in expected]
    assert table.value["headers"][2] == ("std" if problem_type == "regression" else "entropy")


def test_labels_of_the_page_and_images_are_predicted(folders):
    # Red for: labels that stand beside scores of others, an image that is taken for a path.
    judge = load("swag-zero-shot-classification", folders.nli)
    found, expected = prediction_of(judge, ["good film", "good\nbad"]), judge("good film", candidate_labels=["good", "bad"])
    assert found["label"].tolist() == expected["labels"] and found["score"][0] == f"{expected['scores'][0]:.3f}"
    assert found["mutual_information"][1] == f"{expected['mutual_information']:.3f}"
    see, image = load("swag-image-classification", folders.images), Image.new("RGB", (20, 20), "red")
    assert prediction_of(see, [image])["label"].tolist() == [each["label"] for each in see(image)]


def test_the_page_is_served(folders):
    # Red for: a page that is built and not reachable, draws that the command's options do not set.
    page = serve(ServeOptions(model=folders.questions, port=0, num_samples=2), block=False)
    try:
        shown = [block.value for block in page.blocks.values() if getattr(block, "elem_id", None) == "about"]
        assert "2 draws" in shown[0]
        assert Client(page.local_url, verbose=False).config["title"] == "How certain is it?"
    finally:
        page.close()
