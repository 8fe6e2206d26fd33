from dataclasses import replace

import pytest
import torch
from oracles import dense_covariance, two_pass_moments

from swag_trainer.posterior.compression import compress
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.moments import RunningMoments


def some_gaussian(rank=6, count=9, size=11):
    generator = torch.Generator().manual_seed(3)
    moments = RunningMoments(size, rank)
    for _ in range(count):
        moments.fold(torch.randn(size, generator=generator))
    return LowRankGaussian(moments.mean, moments.variance, moments.deviations)


# Full; fewer columns than the capacity (K < rank); diagonal; two columns, the first of them zero.
@pytest.mark.parametrize(
    "gaussian", [some_gaussian(), some_gaussian(rank=20, count=4), some_gaussian(rank=0), some_gaussian(20, 2)]
)
def test_displacement_has_exactly_the_covariance_of_the_paper(gaussian):
    # Red for: variance instead of its root, a missing one-half, K or the capacity instead of K - 1, fresh z2 for each weight.
    size, rank = gaussian.mean.numel(), gaussian.rank
    # Feeding the identity in place of noise turns the map into its own matrix.
    root = torch.cat(
        [
            gaussian.displacement(torch.eye(size).double(), torch.zeros(size, rank).double()),
            gaussian.displacement(torch.zeros(rank, size).double(), torch.eye(rank).double()),
        ]
    )
    # float64 arithmetic on both sides: nothing but the order of the additions differs.
    torch.testing.assert_close(root.T @ root, dense_covariance(gaussian.variance, gaussian.deviations), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_scale_multiplies_the_covariance(rank, scale):
    # Red for: scale taken as a factor of the standard deviation, in one branch or in both.
    gaussian = some_gaussian(rank)
    one = gaussian.sample(3, seed=0, scale=1.0) - gaussian.mean
    other = gaussian.sample(3, seed=0, scale=scale) - gaussian.mean
    torch.testing.assert_close(other, one * scale**0.5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gaussian", [some_gaussian(), some_gaussian(rank=20, count=4), some_gaussian(rank=0)])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_the_total_variance_is_the_trace_of_the_covariance(gaussian, is_compressed):
    # Red for: the diagonal's one-half left out or put in without deviations, K in place of K - 1, directions without their rotation.
    if is_compressed:
        gaussian, _ = compress(gaussian)
        gaussian = replace(gaussian, rotation=2 * gaussian.rotation)  # that of a file need not be orthonormal
    expected = float(dense_covariance(gaussian.variance, gaussian.deviations).trace())
    assert gaussian.total_variance == pytest.approx(expected, rel=1e-6)


def test_draws_are_mean_plus_displacement_of_the_designed_noise():
    # Red for: noise and displacement that do not belong together, such as z2 drawn again.
    from swag_trainer.posterior.design import draw_noise

    gaussian = some_gaussian()
    z1, z2 = draw_noise(4, num_weights=11, rank=6, seed=5, design="iid")
    torch.testing.assert_close(gaussian.sample(4, seed=5, design="iid"), gaussian.mean + gaussian.displacement(z1, z2))


def test_scale_0_is_the_mean_itself():
    # Red for: a floor under the variance.
    gaussian = some_gaussian()
    assert torch.equal(gaussian.sample(3, seed=0, scale=0), gaussian.mean.expand(3, -1))


def test_draws_have_the_dense_covariance():
    # Red for: noise of a wrong variance, or the low-rank noise drawn per weight. 40,000 iid draws: entries are good to 3 %.
    gaussian = some_gaussian(size=4)
    draws = gaussian.sample(40_000, seed=0, design="iid").double()
    covariance = dense_covariance(gaussian.variance, gaussian.deviations)
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0, atol=0.03 * float(covariance.diagonal().max()))


def test_a_weight_that_never_moved_is_not_sampled():
    # Red for: a floor such as 1e-6 under the variance, which puts noise on frozen weights.
    moments = RunningMoments(2, 3)
    for value in (1.0, 2.0, 4.0):
        moments.fold(torch.tensor([0.5, value]))
    draws = LowRankGaussian(moments.mean, moments.variance, moments.deviations).sample(8, seed=0)
    assert (draws[:, 0] == 0.5).all()
    assert draws[:, 1].std() > 0


def test_two_pass_oracle_and_moments_give_one_gaussian():
    # Red for: handing the scatter over as the variance.
    vectors = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    moments = RunningMoments(5, 7)
    for vector in vectors:
        moments.fold(vector)
    mean, variance, deviations = two_pass_moments(vectors)
    torch.testing.assert_close(
        dense_covariance(moments.variance, moments.deviations), dense_covariance(variance, deviations), rtol=1e-5, atol=1e-7
    )


def test_shapes_that_do_not_fit_are_refused():
    # Red for: a Gaussian with a single deviation, whose divisor K - 1 is zero.
    with pytest.raises(ValueError, match="K = 0 or K >= 2"):
        LowRankGaussian(torch.zeros(3), torch.zeros(3), torch.zeros(1, 3))
