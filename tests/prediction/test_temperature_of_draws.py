from dataclasses import replace

import numpy as np
import pytest
import torch
from lively import lively

from swag_trainer import MonteCarloPredictor, Predictive, SwagError
from swag_trainer.posterior.tuning import Tuning
from swag_trainer.prediction.monte_carlo import error_limit
from swag_trainer.prediction.predictive import summarise


def tuned(posterior, temperature):
    record = Tuning(temperature, "me/texts", num_examples=10, num_calibration=10, num_samples=10, seed=0, nll=0.5)
    posterior = lively(posterior)
    return replace(posterior, record=replace(posterior.record, scale=2.0, tuning=record))


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_each_draws_logits_are_divided_before_they_are_averaged(link):
    # Red for: the average's logarithm divided, or logits multiplied.
    logits = 3 * torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0))
    draws = (logits.double() / 2.5).softmax(-1) if link == "softmax" else (logits.double() / 2.5).sigmoid()
    predictive = summarise(logits, link, temperature=2.5, keep_draws=True)
    np.testing.assert_allclose(predictive.probabilities, draws.mean(0), rtol=1e-12)
    np.testing.assert_allclose(predictive.draw_probabilities, draws, rtol=1e-12)
    untouched = Predictive.from_logits(logits, link)
    assert np.array_equal(summarise(logits, link, temperature=1.0).probabilities, untouched.probabilities)


def test_a_predictor_takes_the_posteriors_temperature_at_the_posteriors_scale_only(trained, rows):
    # Red for: a temperature that was chosen for one covariance and used with another, or not at all.
    trainer, swag = trained
    posterior = tuned(swag.posterior, 2.5)

    def made(**settings):
        return MonteCarloPredictor(trainer.model, posterior, progress=False, **settings)

    assert made().temperature == made(scale=2.0).temperature == 2.5
    assert made(scale=0).temperature == made(scale=5.0).temperature == 1.0
    assert made(temperature=1.5).temperature == made(temperature=1.5, scale=0).temperature == 1.5
    logits = made().logits(trainer.data_collator([{"input_ids": row["input_ids"]} for row in rows[:5]]))
    expected = (logits.double() / 2.5).softmax(-1).mean(0)
    np.testing.assert_allclose(made().predict(rows[:5]).probabilities, expected, rtol=0, atol=1e-6)
    with pytest.raises(SwagError, match="temperature.*got 0"):
        made(temperature=0)
    with pytest.raises(SwagError, match="temperature.*got inf"):
        made(temperature=float("inf"))


def test_the_error_that_is_stayed_below_is_that_of_the_tempered_probabilities(trained, rows):
    # Red for: the limit, or the answer, of the untempered draws: a high temperature brings rows below it with fewer of them.
    trainer, swag = trained
    posterior, settings = tuned(swag.posterior, 25.0), {"max_error": 0.002, "num_blocks": 6, "progress": False}
    cold = MonteCarloPredictor(trainer.model, posterior, temperature=1.0, **settings).predict(rows)
    warm = MonteCarloPredictor(trainer.model, posterior, **settings).predict(rows)
    assert warm.num_draws.mean() < cold.num_draws.mean()
    done = warm.num_draws < 60
    assert done.any()
    for row in done.nonzero()[0][:3]:
        blocks = int(warm.num_draws[row]) // 10
        fixed = MonteCarloPredictor(trainer.model, posterior, num_blocks=blocks, progress=False)
        answer = fixed.predict([rows[row]], return_draws=True)
        np.testing.assert_allclose(warm.probabilities[row], answer.probabilities[0], rtol=0, atol=1e-6)
        assert error_limit(torch.from_numpy(answer.draw_probabilities), 10)[0] <= 0.002 + 1e-6


def test_a_regression_has_no_temperature(trained):
    # Red for: outputs in the units of the targets, divided.
    trainer, swag = trained
    trainer.model.get_base_model().config.problem_type = "regression"
    with pytest.raises(SwagError, match="regression has no temperature"):
        MonteCarloPredictor(trainer.model, swag.posterior, temperature=2.0)
    assert MonteCarloPredictor(trainer.model, swag.posterior).temperature == 1.0
