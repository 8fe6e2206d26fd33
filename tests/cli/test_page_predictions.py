import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import LABELS, lora_model
from lively import pipeline_of, short_run, tuning_of
from transformers import pipeline

from swag_trainer import SwagError
from swag_trainer.cli.page_predictions import PagePredictions, circumstances, uncertainty, verdict
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
    shown = verdict(predictions, page.decision(above))
    reason = classify(texts[0], abstain_below=above)[0]["reason"].split(",")[0]
    assert shown.startswith(f"Defer to a human. {reason}, the threshold set on this page.")
    assert f"(The likeliest label is {best}.)" in shown
    assert verdict(predictions, page.decision(below)).startswith(f"Label: {best}. Its score {score:.3f} is not below")
    assert verdict(predictions, page.decision(score)).startswith(f"Label: {best}.")
    assert "every text gets a label" in verdict(predictions, page.decision(0.0))


def test_the_slider_starts_at_the_tuned_threshold_also_when_it_comes_back_rounded(run):
    # Red for: the threshold of another goal, a risk that could not be promised, or a rounded threshold that lost its promise.
    first = PagePredictions(classify := pipeline_of(run, tuning=RECORD)).first_decision
    assert first.threshold == 0.41239
    assert "at most 0.1 of the predictions are wrong, with probability 0.9" in first.reason
    assert PagePredictions(classify).decision(round(0.41239, 3)) is not None
    assert PagePredictions(classify).decision(0.412).threshold == 0.41239
    assert PagePredictions(classify).decision(0.42).reason == "the threshold set on this page"
    unpromised = replace(RECORD, thresholds=[each for each in RECORD.thresholds if each.target != 0.1])
    assert PagePredictions(pipeline_of(run, tuning=unpromised)).first_decision.threshold == 0.36
    assert PagePredictions(pipeline_of(run, tuning=RECORD, abstain_below=0.6)).first_decision.threshold == 0.6


def test_a_threshold_that_was_calibrated_for_other_draws_is_not_taken(run):
    # Red for: a promise made with draws that it does not hold for; silence about it.
    for options in ({"num_samples": 5}, {"seed": 4}, {"scale": 1.0}, {"temperature": 1.0}):
        page = PagePredictions(pipeline_of(run, tuning=RECORD, **options))
        assert not page.first_decision, options
        assert "No calibrated threshold applies" in circumstances(page, "me/model")
    assert "No calibrated threshold" not in circumstances(PagePredictions(pipeline_of(run, tuning=RECORD)), "me/model")
    assert "Not tuned on held-out data" in circumstances(PagePredictions(pipeline_of(run)), "me/model")


def test_uncertainty_is_described_with_its_values_in_nats(run, texts):
    # Red for: bits in place of nats, the wrong maximum, a fraction of something else, votes for the winner counted.
    predictions = PagePredictions(pipeline_of(run, num_samples=6))(texts[0])
    shown = uncertainty(predictions)
    entropy, information = float(predictions.averaged.entropy[0]), float(predictions.averaged.mutual_information[0])
    assert f"Entropy {entropy:.3f} nats, of {math.log(3):.3f} at most for 3 classes" in shown
    assert f"Mutual information {information:.3f} nats, {information / entropy:.0%} of the entropy" in shown
    other = sum(int(draw.argmax() != predictions.probabilities.argmax()) for draw in predictions.draws)
    assert f"{other} of 6 draws put another class first." in shown
    assert "no disagreement to measure" in uncertainty(PagePredictions(pipeline_of(run, scale=0.0))(texts[0]))


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
