import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import LABELS, lora_model
from lively import pipeline_of, short_run, tuning_of
from transformers import pipeline

from swag_trainer import SwagError
from swag_trainer.cli.page_predictions import PagePredictions
from swag_trainer.cli.page_sentences import circumstances, disagreement, uncertainty, verdict, without_path
from swag_trainer.cli.page_thresholds import OWN
from swag_trainer.posterior.tuning import CalibratedThreshold

RECORD = tuning_of(
    thresholds=[
        CalibratedThreshold("risk", 0.01, None, 0.0, None, level=0.9),
        CalibratedThreshold("risk", 0.1, 0.41239, 0.8, 0.02, level=0.9),
        CalibratedThreshold("coverage", 0.5, 0.7, 0.51, 0.01),
        CalibratedThreshold("coverage", 0.95, 0.36, 0.96, 0.04),
    ],
)


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    """(model, posterior that was not tuned and whose adapter holds its mean, tokenizer)."""
    model, posterior, tokenizer = short_run(base_folder, texts, tmp_path_factory.mktemp("run"))
    return model, replace(posterior, adapter=posterior.adapter.with_weights(posterior.mean)), tokenizer


def test_the_page_predicts_what_the_pipeline_predicts(run, texts):
    # Red for: other draws, another scale or temperature than the pipeline's, tuned or given; or a mean with either of them.
    for classify in (
        pipeline_of(run, num_samples=6, seed=5),
        pipeline_of(run, tuning=RECORD),
        pipeline_of(run, tuning=RECORD, scale=3.0, temperature=2.0),
    ):
        predictions, theirs = PagePredictions(classify)(texts[0]), classify(texts[0], top_k=None)
        assert predictions.by_name(predictions.probabilities) == {row["label"]: row["score"] for row in theirs}
        assert float(predictions.averaged.entropy[0]) == theirs[0]["entropy"]
        assert float(predictions.averaged.mutual_information[0]) == theirs[0]["mutual_information"]
        np.testing.assert_allclose(predictions.draws.mean(axis=0), predictions.probabilities, atol=1e-12)
        assert len(predictions.draws) == classify.options.resolved(classify.posterior).num_samples
        mean = classify(texts[0], top_k=None, scale=0, temperature=1.0)
        assert predictions.by_name(predictions.mean) == {row["label"]: row["score"] for row in mean}
        assert np.abs(predictions.mean - predictions.probabilities).max() > 1e-4


def test_the_adapter_s_own_weights_predict_too_where_they_are_not_the_mean(run, texts, tmp_path):
    # Red for: the mean's prediction under the name of the trained weights, or trained weights called the mean.
    model, posterior, tokenizer = run
    assert posterior.adapter_holds_mean
    assert PagePredictions(pipeline_of(run))(texts[0]).trained is None
    last = posterior.layout.unflatten(posterior.gaussian.mean + posterior.gaussian.deviations[-1])
    kept = replace(posterior, adapter=posterior.adapter.with_weights(last))
    assert not kept.adapter_holds_mean
    kept.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = pipeline("swag-text-classification", model=str(tmp_path), device="cpu")
    with torch.inference_mode():
        plain = classify.model(**tokenizer(texts[0], return_tensors="pt")).logits.softmax(-1)[0].numpy()
    predictions = PagePredictions(classify)(texts[0])
    np.testing.assert_allclose(predictions.trained, plain, atol=1e-6)  # float32 sums in another order
    assert np.abs(predictions.mean - plain).max() > 1e-4


def test_a_text_below_the_threshold_is_deferred_with_the_pipeline_s_reason(run, texts):
    # Red for: a label given although the score is below, the threshold's end on the wrong side, or a reason of our own making.
    classify = pipeline_of(run)
    page = PagePredictions(classify)
    predictions = page(texts[0])
    score, best = float(predictions.probabilities.max()), LABELS[predictions.probabilities.argmax()]
    above, below = min(1.0, score + 0.01), score - 0.01
    shown = verdict(predictions, page.thresholds.decision(above))
    reason = classify(texts[0], abstain_below=above)[0]["reason"].split(",")[0]
    assert shown.startswith(f"Defer to a human. {reason}, the threshold set on this page.")
    assert f"(The likeliest label is {best}.)" in shown
    assert verdict(predictions, page.thresholds.decision(below)).startswith(
        f"Label: {best}. Its score {score:.3f} is not below"
    )
    assert verdict(predictions, page.thresholds.decision(score)).startswith(f"Label: {best}.")
    assert "every text gets a label" in verdict(predictions, page.thresholds.decision(0.0))


def test_the_slider_starts_at_the_tuned_threshold_also_when_it_comes_back_rounded(run):
    # Red for: the threshold of another goal, a risk that could not be promised, or a rounded threshold that lost its promise.
    thresholds = PagePredictions(pipeline_of(run, tuning=RECORD)).thresholds
    assert thresholds.first.threshold == 0.41239
    assert "at most 0.1 of the predictions are wrong, with probability 0.9" in thresholds.first.reason
    assert thresholds.decision(0.412) == thresholds.first
    assert thresholds.decision(0.42).reason == thresholds.decision(0.412, OWN).reason == "the threshold set on this page"
    unpromised = replace(RECORD, thresholds=[each for each in RECORD.thresholds if each.target != 0.1])
    assert PagePredictions(pipeline_of(run, tuning=unpromised)).thresholds.first.threshold == 0.36
    assert PagePredictions(pipeline_of(run, tuning=RECORD, abstain_below=0.6)).thresholds.first.threshold == 0.6


def test_every_threshold_that_was_calibrated_is_offered_one_of_zero_too(run, texts):
    # Red for: a threshold of 0 taken for none, coverages that are not offered beside a risk, goals of one score taken for each other.
    records = [
        CalibratedThreshold("risk", 0.05, 0.0, 1.0, 0.01, level=0.9),
        CalibratedThreshold("risk", 0.2, 0.0, 1.0, 0.01, level=0.9),
        CalibratedThreshold("coverage", 0.9, 0.36, 0.9, 0.01),
        CalibratedThreshold("risk", 0.001, None, 0.0, None, level=0.9),
    ]
    page = PagePredictions(pipeline_of(run, tuning=replace(RECORD, thresholds=records)))
    offered = page.thresholds.offered
    names = ["at most 5 % wrong (score 0.000)", "at least 90 % labelled (score 0.360)", "at most 20 % wrong (score 0.000)"]
    assert [each.name for each in offered] == names
    about = circumstances(page, "me/model")
    assert "No calibrated threshold" not in about and "The slider starts at 0" not in about
    predictions = page(texts[0])
    for name, goal in ((names[0], "at most 0.05 of"), (names[2], "at most 0.2 of")):
        assert goal in verdict(predictions, page.thresholds.decision(0.0, name))
    assert "every text gets a label" in verdict(predictions, page.thresholds.decision(0.0, OWN))
    assert "at least 0.9 of" in page.thresholds.decision(0.36, names[1]).reason
    # The risk that the pipeline itself was given comes first, although its threshold is 0.
    given = pipeline_of(run, tuning=replace(RECORD, thresholds=records), risk=0.2)
    assert "at most 0.2 of" in PagePredictions(given).thresholds.first.reason
    nothing = replace(RECORD, thresholds=records[3:])
    assert "none reached its goal" in circumstances(PagePredictions(pipeline_of(run, tuning=nothing)), "me/model")


def test_a_threshold_that_was_calibrated_for_other_draws_is_not_taken(run):
    # Red for: a promise made with draws that it does not hold for; silence about it.
    for options in ({"num_samples": 5}, {"seed": 4}, {"scale": 1.0}, {"temperature": 1.0}):
        page = PagePredictions(pipeline_of(run, tuning=RECORD, **options))
        assert not page.thresholds.offered and not page.thresholds.first, options
        assert "No calibrated threshold applies" in circumstances(page, "me/model")
    assert "No calibrated threshold" not in circumstances(PagePredictions(pipeline_of(run, tuning=RECORD)), "me/model")
    assert "Not tuned on held-out data" in circumstances(PagePredictions(pipeline_of(run)), "me/model")


def test_no_path_of_the_machine_is_shown(run, tmp_path):
    # Red for: the folder of the base model, of the served model or of the data, with the name of whoever serves it.
    classify = pipeline_of(run, tuning=replace(RECORD, dataset="/home/alice/tickets.csv"))
    base = str(classify.posterior.adapter.base_model)
    assert "/" in base  # the test's own base lies in a temporary folder
    about = circumstances(PagePredictions(classify), str(tmp_path))
    assert "/" not in about.replace(" / ", "") and "tickets.csv" in about and tmp_path.name in about
    for name, shown in ((r"C:\Users\alice\bert", "bert"), ("~/models/bert", "bert"), ("./run", "run"), ("me/bert", "me/bert")):
        assert without_path(name) == shown


def test_uncertainty_is_described_with_its_values_in_nats(run, texts):
    # Red for: bits in place of nats, the wrong maximum, a fraction of something else, votes for the winner counted.
    predictions = PagePredictions(pipeline_of(run, num_samples=6))(texts[0])
    shown = uncertainty(predictions)
    entropy, information = float(predictions.averaged.entropy[0]), float(predictions.averaged.mutual_information[0])
    assert f"Entropy {entropy:.3f} nats, of {math.log(3):.3f} at most for 3 classes" in shown
    assert f"Mutual information {information:.3f} nats, {information / entropy:.0%} of the entropy" in shown
    other = sum(int(draw.argmax() != predictions.probabilities.argmax()) for draw in predictions.draws)
    assert f"{other} of 6 draws put another class first." in shown
    assert f"as uncertain as an even choice between {math.exp(entropy):.1f} classes." in shown
    assert "no disagreement to measure" in uncertainty(PagePredictions(pipeline_of(run, scale=0.0))(texts[0]))


@pytest.mark.parametrize(
    ("entropy", "information", "votes", "expected"),
    [
        (0.25, 0.061, 0.0, "the draws agree on the label and differ in its probability"),  # the top label's score is .95
        (
            1.6,
            0.328,
            0.4,
            "the draws disagree about the label; more training data could reduce the uncertainty",
        ),  # and here .36
        (1.6, 0.328, 0.1, "most draws agree on the label, some prefer another"),
        (1.6, 0.01, 0.0, "the draws agree; the uncertainty lies in the text"),
        (0.01, 0.001, 0.0, "the draws agree"),
        (0.7, 0.005, 0.5, "the draws hardly differ, but the likeliest classes are so close that the first place changes"),
    ],
)
def test_the_words_follow_the_votes_of_the_draws(entropy, information, votes, expected):
    # Red for: words that follow the fraction of the entropy, by which .061 of .25 is a disagreement and .328 of 1.6 is none.
    assert disagreement(entropy, information, votes) == expected


def test_what_cannot_be_classified_is_refused_in_a_sentence(run, base_folder):
    # Red for: an empty text classified, a long one truncated silently, a model whose labels do not exclude each other taken.
    page = PagePredictions(pipeline_of(run))
    for text, expected in (
        ("  \n", "nothing to classify"),
        ("good " * 100, "102 tokens, the model reads 64"),
        ("x" * 30_000, "30,000"),
    ):
        with pytest.raises(SwagError, match=expected):
            page(text)
    model, posterior, tokenizer = run
    several = lora_model(base_folder)
    several.get_base_model().config.problem_type = "multi_label_classification"
    classify = pipeline("swag-text-classification", model=several, tokenizer=tokenizer, posterior=posterior, device="cpu")
    with pytest.raises(SwagError, match="exclude each other"):
        PagePredictions(classify)


def test_classes_of_the_same_name_are_all_shown(run, texts, monkeypatch):
    # Red for: a dictionary that drops one of them.
    classify = pipeline_of(run)
    monkeypatch.setattr(classify.model.config, "id2label", {0: "good", 1: "bad", 2: "good"})
    predictions = PagePredictions(classify)(texts[0])
    assert list(predictions.by_name(predictions.probabilities)) == ["good (0)", "bad", "good (2)"]
