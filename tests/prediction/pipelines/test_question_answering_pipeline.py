"""The pipeline "swag-question-answering": spans of a context by hand from the plain model's logits, over windows and draws."""

import numpy as np
import pytest
import torch
from answering import LENGTH, answering, answering_trainer, examples, save_answering
from datasets import Dataset
from huggingface_hub import HfApi
from lively import lively
from scipy.special import softmax
from transformers import BertTokenizerFast, pipeline

from hub_cards import build_card
from swag_trainer import SwagCallback, SwagError, SwagQuestionAnsweringPipeline, load_posterior
from swag_trainer.adapters.weights import private_copy
from swag_trainer.tasks.context_windows import WindowEncoder

TASK = "swag-question-answering"
BASE, REPO = "user/tiny-answering", "user/tiny-answering-swag"
STRIDE = 8


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """A run on a base of the Hub, pushed as the Trainer pushes it; its model, its posterior made lively, and the tokenizer."""
    folder = tmp_path_factory.mktemp("answering")
    HfApi().create_repo(BASE, exist_ok=True)
    HfApi().upload_folder(repo_id=BASE, folder_path=save_answering(folder / "base"))
    tokenizer, swag = BertTokenizerFast.from_pretrained(folder / "base"), SwagCallback(rank=4)
    encoder = WindowEncoder(tokenizer, max_length=LENGTH, stride=STRIDE)
    rows = [row for example in examples() for row in encoder.training_rows(example)]
    pushing = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": "hf_test"}
    trainer = answering_trainer(answering(BASE), rows, tokenizer, folder / "run", callbacks=[swag], **pushing)
    trainer.train()
    trainer.push_to_hub()
    return trainer.model.eval(), swag.posterior, tokenizer


def answerer(run, **options):
    model, posterior, tokenizer = run
    return pipeline(TASK, model=model, posterior=lively(posterior), tokenizer=tokenizer, device="cpu", **options)


def windows_by_hand(tokenizer, example):
    """Tokens of each window and, for each, the place of its token in the context or None."""
    question, context = (tokenizer(example[name], add_special_tokens=False)["input_ids"] for name in ("question", "context"))
    room = LENGTH - len(question) - 3
    for first in range(0, max(1, len(context) - STRIDE), room - STRIDE):
        part = context[first : first + room]
        ids = [tokenizer.cls_token_id, *question, tokenizer.sep_token_id, *part, tokenizer.sep_token_id]
        yield ids, [None] * (len(question) + 2) + list(range(first, first + len(part))) + [None]


def spans_by_hand(run, example, draws, *, longest, has_no_answer):
    """{(first token, last token) or None: probability of each draw}, from one plain forward a draw and window."""
    model, posterior, tokenizer = run
    weights, windows = private_copy(model, None, posterior.layout.keys), list(windows_by_hand(tokenizer, example))
    around = {}  # how much context a token has in each window
    for number, (_, places) in enumerate(windows):
        own = [place for place in places if place is not None]
        for index, place in enumerate(own):
            around.setdefault(place, []).append((-min(index, len(own) - 1 - index) - 0.01 * len(own), number))
    found = []
    for draw in draws:
        weights.write(posterior.layout.unflatten(draw))
        logits, none = {}, []
        for number, (ids, places) in enumerate(windows):
            with torch.no_grad():
                output = weights.model(input_ids=torch.tensor([ids]))
            start, end = output.start_logits[0].double().numpy(), output.end_logits[0].double().numpy()
            none.append(start[0] + end[0])
            for i, begin in enumerate(places):
                for j, last in enumerate(places):
                    if None not in (begin, last) and i <= j < i + longest and min(around[begin])[1] == number:
                        assert (begin, last) not in logits
                        logits[begin, last] = start[i] + end[j]
        if has_no_answer:
            logits[None] = min(none)
        found.append(dict(zip(logits, softmax(list(logits.values())), strict=True)))
    return {span: np.array([each[span] for each in found]) for span in found[0]}


def entropy(probabilities):
    return -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(axis=0)


@pytest.mark.parametrize(("scale", "has_no_answer"), [(0, False), (0, True), (1, True)])
def test_spans_are_those_of_the_plain_models_logits_under_each_draw(run, scale, has_no_answer):
    # Red for: a question's token in an answer, start and end of different draws, a span counted in two windows, a softmax a window, the
    # largest logit of no answer, padding of a batch, an entropy of the starts alone.
    answer, longest = answerer(run, scale=scale, num_samples=3, max_answer_len=6, doc_stride=STRIDE), 6
    posterior = lively(run[1])
    draws = [posterior.mean_vector()] if scale == 0 else posterior.draw(3, seed=0, scale=1.0).vectors
    asked = [{"question": each["question"], "context": each["context"], "id": each["id"]} for each in examples()]
    for batch_size in (1, 4):
        found = answer(asked, batch_size=batch_size, top_k=None, handle_impossible_answer=has_no_answer)
        for example, ranking in zip(examples(), found, strict=True):
            spans = spans_by_hand((run[0], posterior, run[2]), example, draws, longest=longest, has_no_answer=has_no_answer)
            assert len(ranking) == len(spans)
            offsets = run[2](example["context"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            characters = {
                (0, 0) if span is None else (offsets[span[0]][0], offsets[span[1]][1]): values for span, values in spans.items()
            }
            for place in ranking:
                assert place["answer"] == example["context"][place["start"] : place["end"]] and place["id"] == example["id"]
                assert place["score"] == pytest.approx(characters[place["start"], place["end"]].mean(), abs=1e-5)
            assert [one["score"] for one in ranking] == sorted((one["score"] for one in ranking), reverse=True)
            values = np.stack(list(spans.values()))
            assert ranking[0]["entropy"] == pytest.approx(entropy(values.mean(axis=1)), abs=1e-4)
            assert ranking[0]["aleatoric"] == pytest.approx(entropy(values).mean(), abs=1e-4)
            assert ranking[0]["mutual_information"] == pytest.approx(ranking[0]["entropy"] - ranking[0]["aleatoric"], abs=1e-9)
            assert ("no_answer_probability" in ranking[0]) == has_no_answer
            if has_no_answer:
                assert np.log(ranking[0]["no_answer_probability"]) == pytest.approx(np.log(spans[None].mean()), abs=1e-3)
    assert len(list(windows_by_hand(run[2], examples()[3]))) > 2
    if scale:
        assert max(ranking[0]["mutual_information"] for ranking in found) > 0.05


def test_questions_come_in_every_form_and_answers_go_into_the_metrics_of_squad(run):
    # Red for: an answer to another question, an id that is lost, a prediction that the metric of evaluate does not take.
    answer, rows = answerer(run, num_samples=2), examples()
    expected = answer(rows)
    assert answer(Dataset.from_list(rows)) == list(answer(row for row in rows)) == expected
    texts = {name: [row[name] for row in rows] for name in ("question", "context")}
    without = [{name: value for name, value in one.items() if name != "id"} for one in expected]
    assert answer(**texts) == without and answer(question=texts["question"][0], context=texts["context"][0]) == without[0]
    assert answer([]) == [] and answer(rows[0], top_k=2)[0] == expected[0]
    squad = answer.as_squad(expected)
    assert squad == [{"id": one["id"], "prediction_text": one["answer"]} for one in expected]
    second = answer.as_squad(answer(rows, handle_impossible_answer=True, top_k=3))
    assert {*second[0]} == {"id", "prediction_text", "no_answer_probability"} and len(second) == len(rows)
    with pytest.raises(SwagError, match='need the "id"'):
        answer.as_squad(without)


def test_the_hub_gives_back_what_was_trained_and_its_card(run):
    # Red for: a task lost on the way, labels of a classifier in the record, a card for another task.
    model, posterior, tokenizer = run
    here = SwagQuestionAnsweringPipeline(
        model=model, posterior=posterior.stored_as("bfloat16"), tokenizer=tokenizer, device="cpu"
    )
    assert pipeline(TASK, model=REPO, device="cpu")(examples()) == here(examples())
    published = load_posterior(REPO).record
    assert published.task == TASK and published.labels is None
    card = build_card(posterior, repo_id=REPO)
    assert card.data.pipeline_tag == "question-answering" and '{"question": "...", "context": "..."}' in str(card)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be"),
        ({"max_answer_len": 0}, "max_answer_len must be"),
        ({"max_seq_len": 99}, "more than the 40 tokens"),
        ({"max_seq_len": "long"}, "max_length must be a whole number"),
        ({"doc_stride": -1}, "stride must be a whole number"),
        ({"doc_stride": 40}, "cannot share stride=40"),
        ({"truncation": True}, "knows no argument 'truncation'"),
        ({"top_n": 3}, "no argument 'top_n'.*Did you mean 'top_k'"),
        ({"prediction_set": 0.9}, "has no prediction_set"),
        ({"max_error": 0.1}, "has no max_error"),
        ({"method": "linearized"}, "has no method"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_question_is_read(run, options, message, monkeypatch):
    # Red for: an argument that is taken and does nothing, a refusal after the first question.
    answer = answerer(run)
    monkeypatch.setattr(SwagQuestionAnsweringPipeline, "preprocess", None)
    with pytest.raises(SwagError, match=message):
        answer(examples(), **options)
    with pytest.raises(SwagError, match=message):
        answerer(run, **options)


def test_what_is_no_question_is_refused_by_name(run):
    # Red for: an answer from an empty context, a question whose context is lost, a tokenizer's panic.
    answer = answerer(run)
    for asked, message in (
        ("a text", "takes questions"),
        ({"question": "was"}, "takes questions"),
        ({"question": "was", "context": " "}, "got context="),
        ({"question": "", "context": "good"}, "got question="),
        ({"question": "was " * 30, "context": "good"}, "has 30 tokens, which leaves 7 of 40"),
    ):
        with pytest.raises(SwagError, match=message):
            answer([asked])
    with pytest.raises(SwagError, match="in one of the two ways"):
        answer(question="was")
    with pytest.raises(SwagError, match="in one of the two ways"):
        answer(examples(), question="was", context="good")
    with pytest.raises(SwagError, match="texts or lists of them, got int and str"):
        answer(question=5, context="good")
    with pytest.raises(SwagError, match="As many contexts as questions"):
        answer(question=["was"], context=["good", "film"])
