import pytest
import torch
from oracles import two_pass_moments

from swag_trainer.posterior.moments import RunningMoments


def moments_of(vectors, rank=20):
    moments = RunningMoments(vectors.shape[1], rank)
    for vector in vectors:
        moments.fold(vector)
    return moments


def trajectory(centre=0.0, spread=1.0, count=30, size=1000):
    generator = torch.Generator().manual_seed(1)
    walk = torch.randn(count, size, generator=generator).double().cumsum(0) / count**0.5
    return centre + spread * (walk + torch.randn(count, size, generator=generator))


def test_the_mean_of_0_3_6_is_3():
    # Red for: a counter that starts at 1 (gives 2.25), or a mean that starts from a copy of the weights and is added to.
    moments = moments_of(torch.tensor([[0.0], [3.0], [6.0]]), rank=2)
    assert moments.mean.item() == 3.0
    assert moments.variance.item() == 6.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (0.03, 1e-2), (0.5, 1e-5), (-4.0, 1e-3)])
def test_moments_agree_with_two_passes_in_float64(dtype, centre, spread):
    # Red for: mean(w**2) - mean(w)**2, a state in the weights' dtype, and for Welford without an origin (5e-4 at 0.5 +- 1e-5).
    vectors = trajectory(centre, spread).to(dtype).unique_consecutive(dim=0)  # 0.5 +- 1e-5 is one number in bfloat16
    moments = moments_of(vectors, rank=max(2, len(vectors)))
    mean, variance, deviations = two_pass_moments(vectors)
    # Relative to the size of what is compared; float32 has a unit round-off of 6e-8 and 30 vectors add up some of them.
    torch.testing.assert_close(moments.mean.double(), mean, rtol=1e-6, atol=1e-6 * float(vectors.double().abs().max()))
    torch.testing.assert_close(moments.variance.double(), variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(moments.deviations.double(), deviations, rtol=0, atol=1e-6 * float(deviations.abs().max()))


def test_the_variance_is_never_negative_and_zero_for_a_weight_that_stands_still():
    # Red for: mean(w**2) - mean(w)**2, with or without a floor under it.
    vectors = trajectory(0.5, 1e-5).float()
    vectors[:, 0] = 0.7
    variance = moments_of(vectors).variance
    assert variance[0] == 0
    assert (variance[1:] > 0).all()


@pytest.mark.parametrize("count", [3, 5, 6, 10, 12])
def test_the_ring_keeps_the_latest_deviations_oldest_first(count):
    # Red for: a ring read in storage order, or one that stops when it is full.
    vectors = trajectory(count=count, size=4)
    kept = moments_of(vectors, rank=5).deviations
    expected = two_pass_moments(vectors)[2][-5:]
    torch.testing.assert_close(kept.double(), expected, rtol=1e-5, atol=1e-6)


def test_rank_0_keeps_no_deviations_and_the_same_variance():
    # Red for: kept[-rank:], which keeps everything when rank is 0.
    vectors = trajectory(size=7)
    moments = moments_of(vectors, rank=0)
    assert moments.deviations.shape == (0, 7)
    torch.testing.assert_close(moments.variance.double(), two_pass_moments(vectors)[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("stop", [1, 4, 5, 9])
@pytest.mark.parametrize("rank", [0, 5])
def test_moments_that_were_stored_go_on_bit_for_bit(stop, rank):
    # Red for: a ring restored at the wrong place, or a state that is rounded on the way.
    vectors = trajectory(count=12, size=6).float()
    whole = moments_of(vectors, rank)
    part = moments_of(vectors[:stop], rank)
    part = RunningMoments.from_tensors({name: t.clone() for name, t in part.tensors().items()}, count=stop, rank=rank)
    for vector in vectors[stop:]:
        part.fold(vector)
    for name, tensor in whole.tensors().items():
        assert torch.equal(part.tensors()[name], tensor), name


def test_a_vector_that_did_not_move_is_not_counted_twice():
    # Red for: a step that loss scaling skipped counted as a snapshot, also right after a restart and with rank 0.
    vectors = trajectory(count=4, size=6).float()
    for rank in (0, 3):
        moments = moments_of(vectors, rank)
        assert moments.fold(vectors[-1]) is None
        again = RunningMoments.from_tensors(moments.tensors(), count=4, rank=rank)
        assert again.fold(vectors[-1]) is None
        assert again.fold(vectors[0]) is not None
        assert (moments.count, again.count) == (4, 5)


def test_fold_returns_the_length_of_the_deviation():
    # Red for: the distance to the mean before the vector, or its square.
    moments, vectors = RunningMoments(6, 4), trajectory(count=4, size=6).float()
    lengths = [moments.fold(vector) for vector in vectors]
    torch.testing.assert_close(torch.tensor(lengths), moments.deviations.norm(dim=1))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_vector_with_a_nan_is_refused_and_changes_nothing(count):
    # Red for: NaN in the mean, or in the row of the ring that the vector would have taken.
    moments = moments_of(trajectory(count=5, size=6).float()[:count], rank=3) if count else RunningMoments(6, 3)
    before = {name: tensor.clone() for name, tensor in moments.tensors().items()}
    for value in (float("nan"), float("inf")):
        with pytest.raises(FloatingPointError):
            moments.fold(torch.tensor([0.0, 1.0, value, 0.0, 0.0, 0.0]))
    assert moments.count == count
    assert all(torch.equal(moments.tensors()[name], tensor) for name, tensor in before.items())


def test_weights_whose_squares_overflow_are_folded_all_the_same():
    # Red for: a finite weight of 1e25 taken for an infinite one.
    moments = moments_of(torch.tensor([[1e25, 0.0], [0.0, 1.0]]), rank=2)
    assert moments.count == 2
    torch.testing.assert_close(moments.mean, torch.tensor([5e24, 0.5]))


@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_the_mean_with_one_more_vector_is_the_mean_after_folding_it(count):
    # Red for: another order of the same sums, or a proposal that is counted.
    vectors = trajectory(0.3, 1e-3, count=8, size=50).float()
    moments = moments_of(vectors[:count], rank=3) if count else RunningMoments(50, 3)
    proposed = moments.mean_with(vectors[count])
    moments.fold(vectors[count])
    assert torch.equal(moments.mean, proposed)
    assert moments.count == count + 1


def test_a_restart_forgets_everything():
    # Red for: a scatter or an origin that stays.
    vectors = trajectory(count=6, size=6).float()
    moments = moments_of(vectors[:4], rank=3)
    moments.restart()
    for vector in vectors[4:]:
        moments.fold(vector)
    for name, tensor in moments_of(vectors[4:], rank=3).tensors().items():
        assert torch.equal(moments.tensors()[name], tensor), name


def test_a_vector_of_another_length_is_refused_with_both_lengths():
    # Red for: broadcasting a vector of one number.
    moments = moments_of(torch.zeros(1, 96))
    with pytest.raises(ValueError, match=r"\[48\].*96"):
        moments.fold(torch.zeros(48))


@pytest.mark.parametrize("rank", [-1, 1])
def test_a_rank_without_a_covariance_is_refused(rank):
    # Red for: dividing by K - 1 = 0.
    with pytest.raises(ValueError, match="rank"):
        RunningMoments(3, rank)
