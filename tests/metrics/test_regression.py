import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from swag_trainer.metrics.regression import (
    ensemble_coverage,
    ensemble_crps,
    gaussian_coverage,
    gaussian_crps,
    gaussian_nll,
)


def gaussian_cases(count=1000):
    """Means, standard deviations and targets: plain, perfect, tied, one constant prediction, far off, one row, by turns."""
    for seed in range(count):
        generator = np.random.default_rng(seed)
        rows = 1 if seed % 6 == 5 else generator.integers(2, 50)
        mean, std = generator.normal(size=rows), generator.uniform(0.05, 3, size=rows)
        targets = generator.normal(mean, 2 * std)
        if seed % 6 == 1:
            targets = mean.copy()
        elif seed % 6 == 2:
            mean, std, targets = mean.round(), np.maximum(std.round(), 1), targets.round()
        elif seed % 6 == 3:
            mean, std = np.full(rows, mean[0]), np.full(rows, std[0])
        elif seed % 6 == 4:
            targets = targets + 40 * std * generator.choice([-1, 1], size=rows)
        yield mean, std, targets


def draw_cases(count=1000):
    for seed in range(count):
        generator = np.random.default_rng(seed)
        draws = generator.normal(size=(generator.integers(1, 12), generator.integers(1, 30)))
        targets = generator.normal(size=draws.shape[1])
        if seed % 4 == 0:
            draws, targets = draws.round(), targets.round()  # ties among the draws and with the targets
        if seed % 7 == 0:
            draws = np.tile(targets, (len(draws), 1))  # perfect
        if seed % 7 == 1:
            draws = np.full_like(draws, draws[0, 0])  # one constant prediction
        yield draws, targets


def test_the_log_score_is_that_of_the_normal_density():
    # Red for: a variance for a standard deviation, the constant left out.
    for mean, std, targets in gaussian_cases():
        assert gaussian_nll(mean, std, targets) == pytest.approx(-norm.logpdf(targets, mean, std).mean(), abs=1e-9)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(60)


def integral(function, low, high):
    """Of one function per row, by Gauss and Legendre; the borders have the shape (N,)."""
    half = (high - low) / 2
    return half * (function(low[:, None] + half[:, None] * (NODES + 1)) @ WEIGHTS)


def slow_gaussian_crps(mean, std, targets):
    """The integral of (F(x) - [x >= target])^2 over x; beyond nine standard deviations F is 0 or 1."""
    low, high = mean - 9 * std, mean + 9 * std
    inside = np.clip(targets, low, high)
    mean, std = mean[:, None], std[:, None]
    below = integral(lambda x: norm.cdf(x, mean, std) ** 2, low, inside)
    above = integral(lambda x: norm.sf(x, mean, std) ** 2, inside, high)
    return below + above + np.abs(targets - inside)


def test_the_score_of_a_gaussian_is_the_integral_of_its_definition():
    # Red for: a sign, a factor of 2, the score in standard deviations instead of the targets' unit.
    for mean, std, targets in gaussian_cases():
        assert gaussian_crps(mean, std, targets) == pytest.approx(slow_gaussian_crps(mean, std, targets).mean(), abs=1e-9)


def test_the_oracle_of_that_integral_is_that_of_an_adaptive_one():
    # Red for: an oracle with too few nodes.
    for mean, std, target in [(0.0, 1.0, 0.0), (1.0, 0.3, 1.5), (-2.0, 4.0, 3.0), (0.0, 0.1, -0.4)]:
        below = quad(lambda x: norm.cdf(x, mean, std) ** 2, mean - 20 * std, target, epsabs=1e-10, limit=200)[0]  # noqa: B023
        above = quad(lambda x: norm.sf(x, mean, std) ** 2, target, mean + 20 * std, epsabs=1e-10, limit=200)[0]  # noqa: B023
        ours = slow_gaussian_crps(np.array([mean]), np.array([std]), np.array([target]))
        assert ours.item() == pytest.approx(below + above, abs=1e-9)


def test_the_score_of_draws_is_that_of_their_pairs():
    # Red for: pairs of a draw with itself left out, sorting along the rows, half of the spread.
    for draws, targets in draw_cases():
        error = np.abs(draws - targets).mean()
        spread = np.abs(draws[:, None] - draws[None]).mean()
        assert ensemble_crps(draws, targets) == pytest.approx(error - spread / 2, abs=1e-9)


def test_the_score_of_draws_is_that_of_torchmetrics():
    # Red for: rows and draws exchanged. They refuse a single draw, whose score is the absolute error.
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.functional.regression")
    for draws, targets in draw_cases():
        if len(draws) == 1:
            assert ensemble_crps(draws, targets) == pytest.approx(np.abs(draws[0] - targets).mean(), abs=1e-12)
            continue
        theirs = functional.continuous_ranked_probability_score(torch.tensor(draws.T), torch.tensor(targets))
        assert ensemble_crps(draws, targets) == pytest.approx(float(theirs), abs=1e-6)


def test_many_draws_have_the_score_of_their_distribution():
    # Red for: two scores that cannot be compared. 4,000 draws are off by 0.01 in both terms at most.
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(4000, 1))
    assert ensemble_crps(draws, [2.0]) == pytest.approx(gaussian_crps([1.0], [2.0], [2.0]), abs=0.03)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_coverage_is_the_share_inside_the_interval(level):
    # Red for: one tail, an interval around the target, the level itself as a quantile.
    for mean, std, targets in gaussian_cases():
        low, high = norm.interval(level, mean, std)
        inside = ((low <= targets) & (targets <= high)).mean()
        assert gaussian_coverage(mean, std, targets, level=level) == pytest.approx(inside)
    for draws, targets in draw_cases():
        inside = []
        for column, target in zip(draws.T, targets, strict=True):
            low, high = np.quantile(column, [(1 - level) / 2, (1 + level) / 2])
            inside.append(low <= target <= high)
        assert ensemble_coverage(draws, targets, level=level) == pytest.approx(np.mean(inside))


def test_targets_drawn_from_the_prediction_are_covered_as_often_as_promised():
    # Red for: an interval of another level. Four standard errors of 20,000 rows are 0.006 at 0.95.
    generator = np.random.default_rng(0)
    targets = generator.normal(size=20_000)
    zero, one = np.zeros(20_000), np.ones(20_000)
    assert gaussian_coverage(zero, one, targets) == pytest.approx(0.95, abs=0.0062)
    assert ensemble_coverage(generator.normal(size=(200, 20_000)), targets) == pytest.approx(0.945, abs=0.01)


@pytest.mark.parametrize("score", [gaussian_nll, gaussian_crps, gaussian_coverage])
@pytest.mark.parametrize(
    ("mean", "std", "targets", "message"),
    [
        ([], [], [], "Means"),
        ([0.0], [0.0], [0.0], "must be > 0"),
        ([0.0], [1.0], [np.nan], "Targets must be finite"),
        ([0.0], [1.0], [0.0, 1.0], "got 1, 1, 2"),
        ([[0.0]], [[1.0]], [[0.0]], "Means"),
    ],
)
def test_gaussians_that_cannot_be_are_refused(score, mean, std, targets, message):
    # Red for: broadcasting, or a score of infinity.
    with pytest.raises(ValueError, match=message):
        score(mean, std, targets)


@pytest.mark.parametrize("score", [ensemble_crps, ensemble_coverage])
def test_draws_that_do_not_fit_are_refused(score):
    # Red for: draws laid out as (N, S), which broadcast where N equals S only.
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3,\)"):
        score(np.zeros((3, 2)), np.zeros(3))


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_levels_that_are_no_probability_are_refused(level):
    # Red for: a percentage taken for a share.
    with pytest.raises(ValueError, match="level"):
        gaussian_coverage([0.0], [1.0], [0.0], level=level)
    with pytest.raises(ValueError, match="level"):
        ensemble_coverage([[0.0]], [0.0], level=level)
