import numpy as np
import pytest
from scipy import stats

from swag_trainer.metrics.bootstrap import Interval, bootstrap_interval
from swag_trainer.metrics.calibration import expected_calibration_error
from swag_trainer.metrics.ood import auroc


def test_the_interval_of_a_mean_is_that_of_scipy():
    # Red for: a level of one tail, the standard error for the limits, fewer rows drawn than there are.
    values = np.random.default_rng(0).exponential(size=200)
    ours = bootstrap_interval(np.mean, values, level=0.9, num_resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=20_000, method="BCa", random_state=np.random.default_rng(1)
    ).confidence_interval
    assert ours.value == values.mean()
    # 20,000 resamples know a 5 % quantile to 1.5 % of the standard error here; of the skewness BCa corrects more than the median.
    error = values.std() / np.sqrt(200)
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * error)
    assert ours.high == pytest.approx(theirs.high, abs=0.15 * error)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    # Red for: the same resamples for every row, or limits of the resamples' mean.
    held = 0
    for seed in range(300):
        values = np.random.default_rng(seed).normal(size=100)
        interval = bootstrap_interval(np.mean, values, num_resamples=200, seed=seed)
        held += interval.low <= 0 <= interval.high
    assert 0.90 <= held / 300 <= 0.98  # 0.94 is expected of 200 resamples of 100 rows; three standard errors are 0.04


def calibrated_sample(seed, *, num_examples=60):
    """Probabilities of four classes, and labels drawn by them: the expected calibration error is noise alone."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet([0.7] * 4, size=num_examples)
    labels = (probabilities.cumsum(axis=1) < generator.uniform(size=(num_examples, 1))).sum(axis=1)
    return probabilities, np.minimum(labels, 3)


def test_the_interval_of_a_calibration_error_holds_its_value_and_its_mean_as_often_as_it_says():
    # Red for: plain percentiles, whose interval begins above the value in some samples and holds the mean in too few; a move by the bias to the wrong side.
    samples = [calibrated_sample(seed) for seed in range(40)]
    mean = np.mean([expected_calibration_error(*sample) for sample in (calibrated_sample(seed) for seed in range(1000, 1200))])
    found = [
        bootstrap_interval(expected_calibration_error, *sample, num_resamples=80, seed=seed, bounds=(0, 1))
        for seed, sample in enumerate(samples)
    ]
    assert all(0 <= each.low <= each.value <= each.high for each in found)
    held = np.mean([each.low <= mean <= each.high for each in found])
    assert held >= 0.9


def test_limits_are_percentiles_around_the_value_and_are_cut_at_the_bounds():
    # Red for: limits moved by the mean of the resamples, by twice the bias, or beyond what the metric can be.
    def distinct(values):  # 30 of 30, and about 19 of a resample
        return float(len(set(values)))

    drawn = np.random.default_rng(5)
    counts = sorted(distinct(drawn.integers(30, size=30)) for _ in range(201))
    ours = bootstrap_interval(distinct, np.arange(30), num_resamples=201, level=0.9, seed=5)
    assert (ours.low, ours.value, ours.high) == (30 + counts[10] - counts[100], 30, 30 + counts[190] - counts[100])
    cut = bootstrap_interval(distinct, np.arange(30), num_resamples=201, level=0.9, seed=5, bounds=(29, 30))
    assert (cut.low, cut.value, cut.high) == (29, 30, 30)


def test_rows_stay_together():
    # Red for: arrays resampled each for itself.
    values = np.arange(50.0)
    interval = bootstrap_interval(lambda one, two: float(np.abs(one - two).max()), values, values, num_resamples=50)
    assert interval == Interval(0.0, 0.0, 0.0)


def test_the_same_seed_gives_the_same_resamples_whatever_is_measured():
    # Red for: the process's own random state, or a seed mixed with the arrays.
    values = np.random.default_rng(0).normal(size=30)
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    one, two = bootstrap_interval(np.mean, values), bootstrap_interval(np.mean, values + 1.0)
    assert two.low == pytest.approx(one.low + 1) and two.high == pytest.approx(one.high + 1)
    assert bootstrap_interval(np.mean, values) == one != bootstrap_interval(np.mean, values, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_groups_keep_their_numbers_of_rows():
    # Red for: resamples without a single OOD example, for which there is no area.
    scores, ood = np.arange(60.0), np.arange(60) >= 58
    counts = []

    def area(drawn, is_ood):
        counts.append(int(is_ood.sum()))
        return auroc(drawn[~is_ood], drawn[is_ood])

    assert bootstrap_interval(area, scores, ood, strata=ood, num_resamples=100).low == 1
    assert set(counts) == {2}


def test_an_interval_reads_as_one():
    # Red for: limits without their figure.
    assert str(Interval(0.5, 0.25, 0.75)) == "0.5000 [0.2500, 0.7500]"


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((), {}, "Arrays with the same rows"),
        (([],), {}, "Arrays with the same rows"),
        ((1.0,), {}, "Arrays with the same rows"),
        (([1.0], [1.0, 2.0]), {}, r"\(1,\), \(2,\)"),
        (([1.0],), {"level": 95}, "level"),
        (([1.0],), {"num_resamples": 0}, "num_resamples"),
        (([1.0],), {"strata": [0, 1]}, "strata"),
    ],
)
def test_what_cannot_be_resampled_is_refused(arrays, options, message):
    # Red for: a percentage taken for a share, arrays cut to the shortest.
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.mean, *arrays, **options)


def test_rows_of_one_example_are_drawn_together():
    # Red for: rows that are drawn one by one, which makes copies of a row look like new information; examples of unequal size cut alike.
    values = np.random.default_rng(0).normal(size=30)
    expected = bootstrap_interval(np.mean, values, num_resamples=50)
    copies, example = np.repeat(values, 4), np.repeat(np.arange(30), 4)
    order = np.random.default_rng(1).permutation(120)
    found = bootstrap_interval(np.mean, copies[order], clusters=example[order], num_resamples=50)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert bootstrap_interval(len, values, clusters=[0] * 29 + [1], num_resamples=200).high == 58
    for options, message in (({"strata": example}, "not both"), ({"clusters": example[:5]}, "clusters needs the group")):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(np.mean, copies, **{"clusters": example, **options})
