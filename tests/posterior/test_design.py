import pytest
import torch

from swag_trainer.posterior.design import _orthogonal, draw_noise


def noise(num_samples, *, design="matched", seed=0, num_weights=50, rank=20):
    return draw_noise(num_samples, num_weights=num_weights, rank=rank, seed=seed, design=design)


@pytest.mark.parametrize("num_samples", [2, 10, 20, 21, 40])
def test_matched_noise_sums_to_zero(num_samples):
    # Red for: only one of the two parts centred.
    for part in noise(num_samples):
        torch.testing.assert_close(part.sum(0), torch.zeros_like(part[0]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("num_samples", [2, 10, 20])
def test_few_directions_become_orthogonal_and_keep_their_lengths(num_samples):
    # Red for: orthonormal rows, whose lengths are not those of normal vectors.
    noise = torch.randn(num_samples, 20, generator=torch.Generator().manual_seed(0)).double()
    rows = _orthogonal(noise)
    torch.testing.assert_close(rows @ rows.T, torch.diag(noise.pow(2).sum(1)), rtol=0, atol=1e-10)


def test_few_matched_directions_are_the_orthogonal_ones_centred():
    # Red for: plain centred noise.
    raw = noise(10, design="iid")[1].double()
    rows = _orthogonal(raw)
    expected = (rows - rows.mean(0)) * (10 / 9) ** 0.5
    torch.testing.assert_close(noise(10)[1].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_samples", [21, 30])
def test_many_matched_directions_are_white(num_samples):
    # Red for: centring without whitening, or a factor sqrt(S - 1).
    directions = noise(num_samples)[1].double()
    torch.testing.assert_close(directions.T @ directions, num_samples * torch.eye(20).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("num_samples", "rank"), [(2, 3), (3, 3), (5, 3)])
def test_every_matched_draw_keeps_mean_0_and_covariance_1(num_samples, rank):
    # Red for: centring without sqrt(S / (S - 1)), or directions that keep a QR's signs. 4,000 seeds: entries are good to 0.08.
    draws = [noise(num_samples, seed=seed, num_weights=2, rank=rank) for seed in range(4000)]
    for part, size in ((0, 2), (1, rank)):
        first = torch.stack([pair[part][0] for pair in draws]).double()
        torch.testing.assert_close(first.mean(0), torch.zeros(size).double(), rtol=0, atol=0.06)
        torch.testing.assert_close(first.T.cov(), torch.eye(size).double(), rtol=0, atol=0.08)


def test_the_first_iid_draws_do_not_depend_on_how_many_follow():
    # Red for: one generator for all draws (randn(30, P)[:10] is not randn(10, P)).
    few, many = noise(3, design="iid"), noise(7, design="iid")
    assert torch.equal(few[0], many[0][:3])
    assert torch.equal(few[1], many[1][:3])


def test_draws_depend_on_the_seed_alone():
    # Red for: the global generator, or seeds that overlap as seed + index would.
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = noise(4, design="iid", seed=7)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, noise(4, design="iid", seed=7)[0])
    assert not torch.equal(first[1], noise(4, design="iid", seed=8)[0][0])


def test_threads_do_not_change_a_draw():
    # Red for: noise whose order follows the threads.
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(noise(10, num_weights=100_003))
        assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_one_matched_draw_is_plain_noise_and_no_rank_needs_no_directions():
    # Red for: dividing by S - 1 = 0, or a QR of nothing.
    assert torch.equal(noise(1)[0], noise(1, design="iid")[0])
    assert noise(5, rank=0)[1].shape == (5, 0)


def test_an_unknown_design_is_refused():
    # Red for: a misspelt design that falls through to "matched".
    with pytest.raises(ValueError, match="'sobol'"):
        noise(2, design="sobol")
    with pytest.raises(ValueError, match="at least 1"):
        noise(0)
