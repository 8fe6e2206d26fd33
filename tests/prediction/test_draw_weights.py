"""Draws that do not all count the same, as a mixture gives them, against NumPy."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from lively import short_run
from oracles import entropy

from swag_trainer import MonteCarloPredictor, SwagError, SwagPosterior
from swag_trainer.posterior.base import Draws
from swag_trainer.prediction.monte_carlo import error_limit, standard_error
from swag_trainer.prediction.predictive import Predictive, summarise

S, N, C = 6, 5, 3
WEIGHTS = torch.tensor([0.3, 0.1, 0.05, 0.25, 0.2, 0.1], dtype=torch.float64)
LOGITS = 2 * torch.randn(S, N, C, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, eq=False, repr=False)
class Trusted(SwagPosterior):
    """A posterior whose draws come in pairs, the first of each counting three times as much as the second."""

    kind: ClassVar[str] = "trusted"

    def draw(self, num_samples, *, seed, scale=None, design="matched"):
        vectors = super().draw(num_samples, seed=seed, scale=scale, design="iid").vectors
        weights = torch.tensor([0.75, 0.25]).repeat(num_samples // 2) / (num_samples // 2)
        return Draws(vectors, weights if num_samples % 2 == 0 else None, 2 if num_samples % 2 == 0 else 1)


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    """(model, posterior with weighted draws, rows)."""
    model, posterior, tokenizer = short_run(base_folder, texts, tmp_path_factory.mktemp("run"))
    return model, Trusted(**vars(posterior)), [dict(tokenizer(text)) for text in texts]


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_every_average_is_weighted(link):
    # Red for: one mean over the draws that forgets the weights, a standard deviation around the unweighted mean, weighted logits.
    draws = (LOGITS.double().softmax(-1) if link == "softmax" else LOGITS.double().sigmoid()).numpy()
    weights = WEIGHTS.numpy()
    predictive = Predictive.from_logits(LOGITS, link, weights=WEIGHTS)
    mean = np.average(draws, axis=0, weights=weights)
    np.testing.assert_allclose(predictive.probabilities, mean, rtol=1e-12)
    np.testing.assert_allclose(predictive.std, np.average((draws - mean) ** 2, axis=0, weights=weights) ** 0.5, rtol=1e-12)

    def nats(probabilities):
        parts = [probabilities.tolist()] if link == "softmax" else [[p, 1 - p] for p in probabilities]
        return sum(map(entropy, parts))

    aleatoric = np.average([[nats(row) for row in draw] for draw in draws], axis=0, weights=weights)
    np.testing.assert_allclose(predictive.aleatoric, aleatoric, rtol=1e-12)
    total = np.array([nats(row) for row in mean])
    np.testing.assert_allclose(predictive.mutual_information, total - aleatoric, rtol=1e-9)
    if link == "softmax":
        votes = np.stack([((draws.argmax(-1) == label) * weights[:, None]).sum(0) for label in range(C)], axis=-1)
        expected = 1 - votes.max(-1)
    else:
        votes = ((draws > 0.5) * weights[:, None, None]).sum(0)
        expected = np.minimum(votes, 1 - votes).mean(-1)
    np.testing.assert_allclose(predictive.variation_ratio, expected, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_standard_error_of_weighted_blocks_is_that_of_reliability_weights(size):
    # Red for: means of blocks that forget the weights inside them, blocks that all count the same, a correction of B - 1.
    draws, weights = LOGITS.double().numpy(), WEIGHTS.numpy().reshape(-1, size)
    totals = weights.sum(1)
    means = np.stack([np.average(draws.reshape(-1, size, N, C)[b], axis=0, weights=weights[b]) for b in range(len(weights))])
    whole = np.average(means, axis=0, weights=totals)
    variance = (totals[:, None, None] * (means - whole) ** 2).sum(0) / (1 - (totals**2).sum())
    expected = (variance * (totals**2).sum()) ** 0.5
    np.testing.assert_allclose(standard_error(LOGITS.double(), size, WEIGHTS), expected, rtol=1e-12)
    regression = summarise(LOGITS, "identity", weights=WEIGHTS, draws_per_block=size)
    np.testing.assert_allclose(regression.standard_error, expected, rtol=1e-12)
    np.testing.assert_allclose(regression.mean, np.average(draws, axis=0, weights=WEIGHTS), rtol=1e-12)


def test_the_estimate_is_the_spread_of_weighted_means_over_repetitions():
    # Red for: the variance of one draw, or a divisor that is right for equal weights only.
    draws = torch.randn(S, 40_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spread = torch.tensordot(WEIGHTS, draws, dims=1).std()
    estimate = standard_error(draws, 1, WEIGHTS).square().mean().sqrt()
    assert float(estimate / spread) == pytest.approx(1, abs=0.02)  # 40,000 repetitions know both to 0.5 %


def test_equal_weights_are_no_weights():
    # Red for: a formula with weights that is another one than that without.
    equal = torch.full((S,), 1 / S, dtype=torch.float64)
    for size in (1, 2):
        with_weights, without = (error_limit(LOGITS.double(), size, weights) for weights in (equal, None))
        torch.testing.assert_close(with_weights, without, rtol=1e-9, atol=0)
    assert error_limit(LOGITS[:1].double(), 1, torch.ones(1)).isinf().all()
    assert standard_error(LOGITS.double(), 3, torch.tensor([1.0, 0, 0, 0, 0, 0])).isnan().all()


def test_the_predictor_weights_the_draws_of_every_block_and_takes_the_size_of_their_sets(run):
    # Red for: weights that are dropped on the way, weights of two blocks that sum to 2, draws per block by the predictor's own rule.
    model, posterior, rows = run
    predictor = MonteCarloPredictor(model, posterior, num_samples=4, num_blocks=2, progress=False)
    predicted = predictor.predict(rows, return_draws=True)
    weights = np.tile([0.75, 0.25], 4) / 4
    expected = np.average(predicted.draw_probabilities, axis=0, weights=weights)
    np.testing.assert_allclose(predicted.probabilities, expected, rtol=1e-12)
    assert np.abs(expected - predicted.draw_probabilities.mean(0)).max() > 1e-3
    pairs = np.einsum("bdnc,d->bnc", predicted.draw_probabilities.reshape(4, 2, -1, 3), [0.75, 0.25])
    np.testing.assert_allclose(predicted.standard_error, pairs.std(0, ddof=1) / 2, rtol=1e-9)
    within = MonteCarloPredictor(model, posterior, num_samples=4, num_blocks=2, max_error=1e-9, progress=False).predict(rows)
    np.testing.assert_allclose(within.probabilities, predicted.probabilities, rtol=0, atol=1e-6)


def test_draws_that_do_not_fit_their_weights_are_refused(run, monkeypatch):
    # Red for: an error of a tensor library far from the family that made the mistake.
    model, posterior, _ = run
    wrong = Draws(torch.zeros(4, posterior.layout.size), None, 3)
    monkeypatch.setattr(Trusted, "draw", lambda self, num_samples, **options: wrong)
    with pytest.raises(SwagError, match="kind 'trusted' gave 4 draws in sets of 3"):
        MonteCarloPredictor(model, posterior, num_samples=4)
