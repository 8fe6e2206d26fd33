import pytest
import torch

from swag_trainer.collection.diagnostics import trajectory_statistics, warning
from swag_trainer.posterior.moments import RunningMoments


def statistics_of(snapshots, rank):
    moments = RunningMoments(snapshots.shape[1], rank)
    for snapshot in snapshots.float():
        moments.fold(snapshot)
    return trajectory_statistics(moments.deviations, count=moments.count), moments


def straight_line(count):
    return torch.arange(count).double()[:, None] * torch.linspace(0.5, 2, 40)


def walk(count, seed=0):
    return torch.randn(count, 500, generator=torch.Generator().manual_seed(seed)).double().cumsum(0)


def independent(count, seed=0):
    return torch.randn(count, 500, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("path", [straight_line, walk, independent])
@pytest.mark.parametrize(("count", "rank"), [(8, 20), (21, 8), (30, 7), (20, 20)])
def test_the_statistics_are_those_of_the_latest_snapshots_themselves(path, count, rank):
    # Red for: deviations taken for snapshots, a wrong step of the mean, or halves that overlap.
    snapshots = path(count)
    statistics, moments = statistics_of(snapshots, rank)
    kept = min(count, rank)
    latest = snapshots[-kept:] - snapshots[-kept:].mean(0)
    spread = (latest**2).sum()
    early, late = latest[: kept // 2].mean(0), latest[kept - kept // 2 :].mean(0)
    assert statistics["autocorrelation"] == pytest.approx(float((latest[1:] * latest[:-1]).sum() / spread), abs=1e-4)
    assert statistics["drift"] == pytest.approx(float(((late - early) ** 2).sum() / 4 / (spread / kept)), rel=1e-4)
    eigenvalues = torch.linalg.eigvalsh(moments.deviations.double() @ moments.deviations.double().T)
    assert statistics["effective_rank"] == pytest.approx(float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum()), rel=1e-4)


def test_a_straight_line_a_walk_and_independent_snapshots_are_told_apart():
    # Red for: a drift that every trajectory has.
    line, wander, free = (statistics_of(path(20), 20)[0] for path in (straight_line, walk, independent))
    assert line["drift"] == pytest.approx(0.75, abs=0.01)
    assert line["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert 0.3 < wander["drift"] < 0.6
    assert free["drift"] < 0.1
    assert free["autocorrelation"] < 0.05 < 0.7 < wander["autocorrelation"]
    assert free["effective_rank"] > 15


@pytest.mark.parametrize("snapshots", [torch.randn(3, 5), torch.zeros(6, 5)])
def test_too_few_snapshots_or_none_that_move_say_nothing(snapshots):
    # Red for: 0 / 0, or a correlation of two numbers.
    assert trajectory_statistics(snapshots, count=len(snapshots)) == {}


def test_a_falling_rate_and_an_unfinished_descent_are_said_in_plain_words():
    # Red for: a warning for a good run, or none for a bad one.
    assert warning({"drift": 0.3}, [1e-3, 1e-3]) is None
    assert warning({}, [None, None]) is None
    assert "fell from 0.001 to 0.0001" in warning({"drift": 0.3}, [1e-3, 5e-4, 1e-4])
    assert "75% of the spread" in warning({"drift": 0.75}, [1e-3, 1e-3])
