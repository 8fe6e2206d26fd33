"""`Sampling`: what is refused, and what it takes from a posterior."""

from dataclasses import replace
from typing import get_type_hints

import pytest
import torch
from lively import at_scale_2, short_run, tuning_of

from swag_trainer import MonteCarloPredictor, PointPosterior, Sampling, SwagError
from swag_trainer.prediction.sampler import SamplingChanges


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    """(model, posterior that was not tuned, tokenizer)."""
    return short_run(base_folder, texts, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples.*at least 1, got 0"),
        ({"num_samples": -3}, "got -3"),
        ({"scale": -1.0}, "scale.*got -1"),
        ({"scale": float("inf")}, "scale.*got inf"),
        ({"scale": float("nan")}, "scale.*got nan"),
        ({"temperature": 0.0}, "temperature.*got 0"),
        ({"temperature": float("inf")}, "temperature.*got inf"),
        ({"design": "antithetic"}, "design.*'matched', 'iid'.*'antithetic'"),
        ({"center": "middle"}, "center.*'mean', 'tail', 'last'.*'middle'"),
        ({"num_sample": 5}, "no setting 'num_sample'. Did you mean 'num_samples'"),
        ({"drop_out": True}, "Did you mean 'dropout'"),
        ({"batchsize": 5}, "Did you mean 'batch_size'"),
        ({"zzz": 5}, "no setting 'zzz'. The settings of Sampling are num_samples, seed, scale, temperature, design, dropout"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(run, changes, message):
    # Red for: `0 <= scale` without the upper limit, a design that fails in the middle of a run, keywords that are ignored.
    with pytest.raises(SwagError, match=message):
        MonteCarloPredictor(run[0], run[1], **changes)


@pytest.mark.parametrize(
    ("asked", "scale", "temperature"),
    [
        (Sampling(), 2.0, 1.25),
        (Sampling(scale=2.0), 2.0, 1.25),
        (Sampling(scale=0), 0.0, 1.0),
        (Sampling(scale=5.0), 5.0, 1.0),
        (Sampling(scale=5.0, temperature=3.0), 5.0, 3.0),
    ],
)
def test_scale_and_temperature_are_the_posteriors_where_none_is_asked_for(run, asked, scale, temperature):
    # Red for: a temperature that was tuned at one scale used at another, or scale=0 taken for None.
    posterior = at_scale_2(run[1], tuning_of())
    settled = asked.resolved(posterior)
    assert (settled.scale, settled.temperature) == (scale, temperature)
    predictor = MonteCarloPredictor(run[0], posterior, asked)
    assert (predictor.scale, predictor.temperature, predictor.sampling) == (scale, temperature, settled)


@pytest.mark.parametrize(
    ("asked", "center", "dropout", "temperature"),
    [
        (Sampling(), "tail", True, 1.25),
        (Sampling(scale=2.0, center="tail"), "tail", True, 1.25),
        (Sampling(scale=0), "mean", False, 1.0),
        (Sampling(dropout=False), "tail", False, 1.0),
        (Sampling(center="mean"), "mean", True, 1.0),
        (Sampling(center="last", temperature=3.0), "last", True, 3.0),
    ],
)
def test_centre_and_dropout_are_the_tunings_at_its_scale_and_the_temperature_goes_with_both(
    run, asked, center, dropout, temperature
):
    # Red for: a centre that was chosen with one scale used at another, dropout that cannot be left out, a temperature of other draws.
    settled = asked.resolved(at_scale_2(run[1], tuning_of(center="tail", dropout=True)))
    assert (settled.center, settled.dropout, settled.temperature) == (center, dropout, temperature)
    assert (Sampling().resolved(run[1]).center, Sampling().resolved(run[1]).dropout) == ("mean", False)


@pytest.mark.parametrize("method", ["monte_carlo", "linearized"])
def test_draws_are_those_around_the_mean_moved_to_the_centre(run, texts, method):
    # Red for: a centre that moves nothing, or the mean of the posterior's record itself moved.
    model, posterior, tokenizer = run
    batch = dict(tokenizer(texts[0], return_tensors="pt"))
    gaussian = posterior.gaussian
    for center in ("tail", "last"):
        moved = replace(posterior, gaussian=replace(gaussian, mean=posterior.center(center)))
        expected = MonteCarloPredictor(model, moved, num_samples=3, method=method).logits(batch)
        found = MonteCarloPredictor(model, posterior, num_samples=3, method=method, center=center).logits(batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        single = MonteCarloPredictor(model, posterior, scale=0, center=center).logits(batch)
        torch.testing.assert_close(single, MonteCarloPredictor(model, moved, scale=0).logits(batch), rtol=1e-4, atol=1e-5)
        assert (single - MonteCarloPredictor(model, posterior, scale=0).logits(batch)).abs().max() > 0.01


def test_a_centre_that_the_posterior_does_not_have_is_refused(run):
    # Red for: the mean in its place.
    point = PointPosterior.at(run[1].mean_vector(), run[1])
    with pytest.raises(SwagError, match="'point'.*'mean'.*'last'"):
        MonteCarloPredictor(run[0], point, center="last")
    with pytest.raises(SwagError, match="'point'.*'mean'.*'tail'"):
        point.center("tail")


def test_keywords_replace_fields_of_a_sampling_and_leave_the_others(run):
    # Red for: keywords that make a new Sampling, or are overridden by it.
    predictor = MonteCarloPredictor(run[0], run[1], Sampling(num_samples=3, seed=7), seed=8, design="iid")
    assert predictor.sampling == Sampling(3, 8, scale=1.0, temperature=1.0, design="iid", dropout=False, center="mean")


def test_a_point_is_predicted_with_one_pass(run, texts):
    # Red for: S equal passes, or a posterior whose scale is not asked.
    model, posterior, tokenizer = run
    point = PointPosterior.at(posterior.mean_vector(), posterior)
    predicted = MonteCarloPredictor(model, point).predict(dict(tokenizer(texts[0], return_tensors="pt")))
    assert predicted.num_draws.tolist() == [1] and predicted.mutual_information.tolist() == [0]


def test_the_keywords_are_the_fields():
    # Red for: a field of Sampling that type checkers refuse as a keyword of the predictor.
    assert list(SamplingChanges.__annotations__) == Sampling.field_names()
    assert get_type_hints(SamplingChanges) == get_type_hints(Sampling)
