from dataclasses import replace

import pytest
from conftest import LABELS
from lively import at_scale_2, pipeline_of, short_run, tuning_of

from swag_trainer import MonteCarloPredictor, SwagError
from swag_trainer.metrics.conformal import ConformalSets
from swag_trainer.posterior.tuning import CalibratedThreshold, ConformalQuantile
from swag_trainer.prediction.decisions import PredictionOptions, decide

RECORD = tuning_of(
    thresholds=[
        CalibratedThreshold("risk", 0.05, 0.7, 0.8, 0.02, level=0.9),
        CalibratedThreshold("risk", 0.01, None, 0.0, None, level=0.9),
        CalibratedThreshold("coverage", 0.9, 0.6, 0.91, 0.04),
    ],
    conformal=[
        ConformalQuantile("aps", 0.9, 0.8, 1.4),
        ConformalQuantile("lac", 0.9, 0.62, 1.2),
        ConformalQuantile("raps", 0.9, 0.95, 1.2, 0.05, 1),
        ConformalQuantile("lac", 0.99, None, 3),
    ],
)


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    """(model, posterior that was not tuned, tokenizer)."""
    return short_run(base_folder, texts, tmp_path_factory.mktemp("run"))


@pytest.fixture
def classify(run):
    return pipeline_of(run, tuning=RECORD)


def abstained(answer):
    return answer["label"] is None


def test_an_answer_below_the_score_is_withheld_with_its_reason_and_the_others_are_left_as_they_are(classify, texts):
    # Red for: labels withheld above in place of below, a label or a score that is lost, keys on answers that are given.
    plain = classify(texts)
    scores = sorted(answer["score"] for answer in plain)
    middle = scores[len(scores) // 2]
    answers = classify(texts, abstain_below=middle)
    assert 0 < sum(map(abstained, answers)) < len(answers)
    for answer, before in zip(answers, plain, strict=True):
        if before["score"] >= middle:
            assert answer == before
        else:
            reason = answer.pop("reason")
            assert reason.startswith(f"The score {before['score']:.3f}") and f"below {middle:.3f}" in reason
            assert answer == before | {"label": None, "top_label": before["label"]}
    # It was said in one call only; 0 never abstains.
    assert classify(texts) == classify(texts, abstain_below=0) == plain


def test_in_a_ranking_the_first_answer_alone_is_withheld(classify, texts):
    # Red for: the worst label judged, or the whole ranking.
    ranking = classify(texts[0], top_k=None)
    answers = classify(texts[0], top_k=None, abstain_below=1.0)
    assert [row["label"] for row in answers] == [None, *(row["label"] for row in ranking[1:])]
    assert answers[0]["top_label"] == ranking[0]["label"]
    assert answers[1:] == ranking[1:]


def test_a_risk_and_a_coverage_are_looked_up_in_the_record(classify, run, texts):
    # Red for: a threshold of another goal or level; a reason without where it comes from, or with more than cross-fitting promises.
    plain = classify(texts)
    for options, threshold in [({"risk": 0.05}, 0.7), ({"coverage": 0.9}, 0.6)]:
        answers = classify(texts, **options)
        assert [abstained(answer) for answer in answers] == [answer["score"] < threshold for answer in plain]
    below = [sum(answer["score"] < threshold for answer in plain) for threshold in (0.6, 0.7)]
    assert 0 < below[0] < below[1] < len(texts)
    reason = next(answer["reason"] for answer in classify(texts, risk=0.05) if abstained(answer))
    assert "at most 0.05 of the predictions are wrong, with probability 0.9" in reason
    assert "61 examples of 'me/questions'" in reason
    answers = pipeline_of(run, tuning=replace(RECORD, num_folds=5))(texts, risk=0.05)
    assert "wrong, with probability about 0.9" in next(answer["reason"] for answer in answers if abstained(answer))
    reason = next(answer["reason"] for answer in classify(texts, coverage=0.9) if abstained(answer))
    assert reason.endswith("below 0.600, the score from which on at least 0.9 of 61 examples of 'me/questions' were predicted.")


def test_a_prediction_set_names_the_labels_that_cannot_be_ruled_out_the_likeliest_first(classify, run, texts):
    # Red for: a quantile of another method, labels by number, or sets of untempered probabilities.
    model, _, tokenizer = run
    ours = MonteCarloPredictor(model, classify.posterior, num_samples=4, seed=3, batch_size=1)
    probabilities = ours.predict([dict(tokenizer(text)) for text in texts]).probabilities
    sizes = set()
    for method, quantile, options in [("aps", 0.8, ()), ("lac", 0.62, ()), ("raps", 0.95, (0.05, 1))]:
        chosen = ConformalSets(method, quantile, 0.9, 61, *options).sets(probabilities)
        answers = classify(texts, prediction_set=0.9, prediction_set_method=method)
        for answer, row, inside in zip(answers, probabilities, chosen, strict=True):
            by_score = sorted(range(3), key=lambda index: -row[index])
            assert answer["prediction_set"] == [LABELS[index] for index in by_score if inside[index]]
            sizes.add(len(answer["prediction_set"]))
    assert len(sizes) > 1
    assert classify(texts, prediction_set=0.9) == classify(texts, prediction_set=0.9, prediction_set_method="lac")
    # Too few rows for 99 %: nothing can be ruled out.
    assert all(set(answer["prediction_set"]) == set(LABELS) for answer in classify(texts, prediction_set=0.99))


def test_options_of_the_constructor_hold_for_every_call_until_a_call_says_otherwise(run, texts):
    # Red for: an option that only works in the call; two ways to abstain that add up.
    classify = pipeline_of(run, tuning=RECORD, risk=0.05, prediction_set=0.9)
    first = classify(texts)
    assert any(map(abstained, first)) and all("prediction_set" in answer for answer in first)
    assert all(map(abstained, classify(texts, abstain_below=1.0)))
    assert [abstained(answer) for answer in classify(texts, abstain_below=0)] == [False] * len(texts)
    assert classify(texts) == first


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"risk": 0.03}, r"risk=0\.03; there are: 0\.05, 0\.01"),
        ({"coverage": 0.5}, r"coverage=0\.5; there are: 0\.9"),
        ({"risk": 0.01}, r"at most 0\.01 that can be promised with probability 0\.9.*confidence=None"),
        ({"prediction_set": 0.8}, r"prediction_set=0\.8.*0\.9 \(aps\), 0\.9 \(lac\)"),
        ({"prediction_set": 0.9, "prediction_set_method": "best"}, "'best'"),
        ({"risk": 0.05, "coverage": 0.9}, "risk and coverage both"),
        ({"coverage": "0.9"}, "coverage.*got '0.9'"),
        ({"abstain_below": 1.5}, "abstain_below.*got 1.5"),
        ({"abstain_below": -0.1}, "abstain_below.*got -0.1"),
        ({"risk": 5}, "risk.*got 5"),
        ({"risk": 0.05, "num_samples": 5}, "num_samples=4, this call asks for num_samples=5"),
        ({"risk": 0.05, "seed": 0}, "seed=3, this call asks for seed=0"),
        ({"coverage": 0.9, "scale": 1.0}, "scale=2, this call asks for scale=1"),
        ({"prediction_set": 0.9, "temperature": 1.0}, "temperature=1.25, this call asks for temperature=1"),
        ({"temperature": 0.0}, "temperature.*got 0"),
        ({"prediction_sett": 0.9}, "Did you mean 'prediction_set'"),
    ],
)
def test_what_was_not_calibrated_or_cannot_be_is_refused_in_call_and_constructor(classify, run, texts, options, said):
    # Red for: the nearest level taken instead, or a threshold of these draws compared with scores of others.
    with pytest.raises(SwagError, match=said):
        classify(texts[0], **options)
    with pytest.raises(SwagError, match=said):
        classify([], **options)
    with pytest.raises(SwagError, match=said):
        pipeline_of(run, tuning=RECORD, **options)


def test_the_calibrations_own_draws_may_be_named(classify, texts):
    # Red for: a check that refuses what is the same.
    same = {"num_samples": 4, "seed": 3, "scale": 2.0, "temperature": 1.25}
    assert classify(texts, risk=0.05, **same) == classify(texts, risk=0.05)


@pytest.mark.parametrize("options", [{"risk": 0.05}, {"coverage": 0.9}, {"prediction_set": 0.9}])
def test_a_posterior_that_was_not_tuned_knows_no_risk_but_any_score(run, texts, options):
    # Red for: a threshold out of nowhere.
    classify = pipeline_of(run)
    with pytest.raises(SwagError, match="was not tuned.*abstain_below"):
        classify(texts[0], **options)
    assert abstained(classify(texts[0], abstain_below=1.0)[0])


def test_draws_and_temperature_are_those_of_the_record_unless_asked_otherwise(run):
    # Red for: seed=0 taken for "not given"; the posterior's temperature at another scale.
    posterior = at_scale_2(run[1], RECORD)
    ours = PredictionOptions().resolved(posterior)
    assert (ours.num_samples, ours.seed, ours.scale, ours.temperature) == (4, 3, 2.0, 1.25)
    other = PredictionOptions().updated({"num_samples": 7, "seed": 0, "scale": 0}).resolved(posterior)
    assert (other.num_samples, other.seed, other.scale, other.temperature) == (7, 0, 0.0, 1.0)
    untuned = PredictionOptions().resolved(run[1])
    assert (untuned.num_samples, untuned.seed, untuned.scale, untuned.temperature) == (10, 0, 1.0, 1.0)
    assert not decide(PredictionOptions(), posterior)


def test_temperature_may_be_given_in_the_call(classify, texts):
    # Red for: an option that is taken and not used. At 1,000 every class is as likely as the next.
    warm = classify(texts, temperature=1000.0)
    assert all(abs(answer["score"] - 1 / 3) < 0.01 for answer in warm)
    assert any(abs(answer["score"] - 1 / 3) > 0.05 for answer in classify(texts))


@pytest.mark.parametrize("function", ["sigmoid", "none"])
def test_answers_that_do_not_exclude_each_other_are_not_decided_upon(classify, texts, function):
    # Red for: a threshold for a softmax compared with a logit.
    with pytest.raises(SwagError, match="exclude each other"):
        classify(texts[0], function_to_apply=function, abstain_below=0.5)
    if function == "none":
        with pytest.raises(SwagError, match="stays a number"):
            classify(texts[0], function_to_apply=function, temperature=2.0)
    assert "score" in classify(texts[0], function_to_apply=function)[0]
