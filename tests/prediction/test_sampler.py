"""`Sampling`: what is refused, and what it takes from a posterior."""

from typing import get_type_hints

import pytest
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


def test_keywords_replace_fields_of_a_sampling_and_leave_the_others(run):
    # Red for: keywords that make a new Sampling, or are overridden by it.
    predictor = MonteCarloPredictor(run[0], run[1], Sampling(num_samples=3, seed=7), seed=8, design="iid")
    assert predictor.sampling == Sampling(num_samples=3, seed=8, scale=1.0, temperature=1.0, design="iid")


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
