import math

import pytest
import torch

from swag_trainer.posterior.design import draw_noise
from swag_trainer.prediction.monte_carlo import block_seed, error_limit, standard_error
from swag_trainer.prediction.predictive import Predictive

WEIGHTS, RANK = 20, 12


def answer(seed, *, blocks, design="matched", size=10):
    """Probabilities of a model that bends: linear and quadratic in weights drawn as the predictor draws them. Shape (S, 1, 1)."""
    parts = []
    for block in range(blocks):
        z1, z2 = draw_noise(size, num_weights=WEIGHTS, rank=RANK, seed=block_seed(seed, block), design=design)
        linear = z2 @ torch.linspace(-1, 1, RANK) / 2 + z1.mean(1)
        bend = (z2[:, 0] * z2[:, 1] + z2[:, 2] ** 2) / 2
        parts.append((linear + bend).sigmoid().double())
    return torch.cat(parts)[:, None, None]


def root_mean_square(values):
    return torch.stack(list(values)).square().mean().sqrt()


def test_the_standard_error_is_the_spread_over_repetitions_of_matched_draws():
    # Red for: the formula for independent draws, which overstates it; blocks that share draws, which hides it; S for the blocks.
    runs = [answer(seed, blocks=4) for seed in range(300)]
    spread = torch.stack([run.mean(0) for run in runs]).std(correction=1)
    estimate = root_mean_square(standard_error(run, 10) for run in runs)
    textbook = root_mean_square(standard_error(run, 1) for run in runs)
    # 300 repetitions know a spread to 4 %, and 300 times 3 degrees of freedom the estimate to 3 %.
    assert estimate / spread == pytest.approx(1, abs=0.15)
    assert textbook / spread > 1.5


def test_independent_draws_have_the_textbook_standard_error():
    # Red for: another divisor than the one everybody knows.
    draws = torch.randn(7, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(standard_error(draws, 1), draws.std(0, correction=1) / math.sqrt(7))


def test_one_matched_block_does_not_know_its_error():
    # Red for: a number where there is none to be had, the textbook's or zero.
    assert standard_error(answer(0, blocks=1), 10).isnan().all()
    assert not standard_error(answer(0, blocks=2), 10).isnan().any()
    logits = torch.randn(20, 3, 2)
    assert torch.isnan(torch.tensor(Predictive.from_logits(logits, "softmax", draws_per_block=20).standard_error)).all()
    assert (Predictive.from_logits(logits, "softmax", draws_per_block=10).standard_error > 0).all()


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_limit_is_above_the_true_error_in_95_of_100_cases(count):
    # Red for: the wrong tail, one degree of freedom too many, an estimate for a limit (above in half of the cases).
    draws = torch.randn(count, 20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    above = (error_limit(draws, 1) >= 1 / math.sqrt(count)).double().mean()
    assert float(above) == pytest.approx(0.95, abs=0.006)  # four standard errors of a share of 20,000


def test_rows_that_stop_are_as_exact_as_asked_for():
    # Red for: stopping at the first estimate below the mark, which two lucky blocks give; the error is then 0.0215.
    mark, errors, used = 0.02, [], []
    truth = torch.cat([answer(seed, blocks=20) for seed in range(1000, 1100)]).mean()
    for seed in range(300):
        draws = answer(seed, blocks=10)
        blocks = next((b for b in range(1, 11) if error_limit(draws[: 10 * b], 10) <= mark), None)
        if blocks is not None:
            errors.append(draws[: 10 * blocks].mean() - truth)
            used.append(blocks)
    assert len(errors) > 250 and sum(used) / len(used) < 8
    assert root_mean_square(errors) <= mark


def test_the_limit_is_that_of_the_worst_class():
    # Red for: the mean over the classes, or the best one.
    draws = torch.randn(8, 5, 3, dtype=torch.float64)
    each = torch.stack([error_limit(draws[..., [index]], 2) for index in range(3)])
    torch.testing.assert_close(error_limit(draws, 2), each.amax(0))


def test_one_draw_has_no_limit():
    # Red for: a division by no degrees of freedom that passes for certainty.
    assert error_limit(torch.ones(1, 2, 3), 1).isinf().all()


def test_blocks_have_seeds_of_their_own_and_the_first_has_the_predictors():
    # Red for: seed + 1, which makes the second block of one seed the first of the next.
    seeds = {block_seed(seed, block) for seed in range(20) for block in range(20)}
    assert len(seeds) == 400 and [block_seed(seed, 0) for seed in (0, 7)] == [0, 7]
