import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom, kstest

from swag_trainer.metrics.conformal import ConformalSets, calibrate_conformal

LEVELS = (0.8, 0.9, 0.95)
ROWS = 99  # (n + 1) level is a whole number at every level above, so that the promise is exact
METHODS = {
    "lac": {"method": "lac"},
    "aps": {"method": "aps"},
    "aps, randomised": {"method": "aps", "seed": 7},
    "raps": {"method": "raps", "penalty": 0.1, "regularised_rank": 2},
    "raps, randomised": {"method": "raps", "penalty": 0.1, "regularised_rank": 2, "seed": 7},
}


def overconfident_rows(generator, rows, classes=6):
    """Probabilities of a model that is too sure of itself, and true labels."""
    logits = 1.5 * generator.normal(size=(rows, classes))
    truth = softmax(logits, axis=1)
    labels = (truth.cumsum(axis=1) < generator.random((rows, 1))).sum(axis=1).clip(0, classes - 1)
    return softmax(2 * logits, axis=1), labels


def slow_score(p, label, *, method, penalty=0.0, regularised_rank=0):
    if method == "lac":
        return 1 - p[label]
    order = sorted(range(len(p)), key=lambda index: (-p[index], index))
    rank = order.index(label) + 1
    mass = sum(p[index] for index in order[:rank])
    return mass + (penalty * max(0, rank - regularised_rank) if method == "raps" else 0)


@pytest.mark.parametrize("name", ["lac", "aps", "raps"])
def test_quantile_and_sets_are_those_of_the_definitions(name):
    # Red for: n in place of n + 1, ranks counted from 0, a label's own probability left out, a penalty from the first rank on.
    options = METHODS[name]
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        probabilities, labels = overconfident_rows(generator, int(generator.integers(1, 60)), classes=4)
        probabilities[::3] = 0.25  # ties between labels
        level = float(generator.choice(LEVELS))
        sets = calibrate_conformal(probabilities, labels, level=level, **options)
        scores = sorted(slow_score(p, label, **options) for p, label in zip(probabilities.tolist(), labels, strict=True))
        place = next((k for k in range(1, len(labels) + 1) if k >= (len(labels) + 1) * level - 1e-9), None)
        quantile = math.inf if place is None else scores[place - 1]
        assert sets.quantile == pytest.approx(quantile, abs=1e-12)
        fresh, _ = overconfident_rows(generator, 5, classes=4)
        for p, chosen in zip(fresh.tolist(), sets.sets(fresh), strict=True):
            expected = [slow_score(p, label, **options) <= sets.quantile for label in range(4)]
            expected[int(np.argmax(p))] |= name != "lac"
            assert chosen.tolist() == expected


@pytest.mark.parametrize("level", LEVELS)
def test_coverage_given_the_calibration_has_the_beta_distribution_that_is_known(level):
    # Red for: any other place in the order. The true label's probability is uniform, so the coverage of a quantile q of 1 - p is q.
    generator = np.random.default_rng(0)
    coverages = []
    for _ in range(1000):
        p = generator.random(ROWS)
        rows = np.stack([p, (1 - p) / 2, (1 - p) / 2], axis=1)
        coverages.append(calibrate_conformal(rows, np.zeros(ROWS, dtype=int), level=level, method="lac").quantile)
    k = round((ROWS + 1) * level)
    assert kstest(coverages, "beta", args=(k, ROWS + 1 - k)).pvalue > 0.01
    spread = math.sqrt(
        level * (1 - level) / (ROWS + 2) / 1000
    )  # of the mean of 1,000 such Betas, whose mean is k / (n + 1) = level
    assert abs(np.mean(coverages) - level) < 3 * spread


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", METHODS)
def test_the_sets_of_1000_calibrations_hold_the_true_label_as_often_as_promised(name, level):
    # Red for: a set cut before the label that reaches the quantile.
    generator = np.random.default_rng(1)
    covered, tested = 0, 0
    one_row_each = 0
    for _ in range(1000):
        sets = calibrate_conformal(*overconfident_rows(generator, ROWS), level=level, **METHODS[name])
        probabilities, labels = overconfident_rows(generator, 40)
        hit = sets.sets(probabilities)[np.arange(40), labels]
        covered, tested, one_row_each = covered + hit.sum(), tested + 40, one_row_each + int(hit[0])
    # One new row for each calibration is a coin with the nominal level: an exact binomial interval.
    low, high = binom.ppf([0.0005, 0.9995], 1000, level)
    assert one_row_each >= low
    # Forty rows share their calibration: variance of a beta-binomial.
    spread = math.sqrt(level * (1 - level) * (1 / 40 + (1 - 1 / 40) / (ROWS + 2)) / 1000)
    assert covered / tested > level - 3.3 * spread
    if name == "lac" or "randomised" in name:
        assert one_row_each <= high
        assert covered / tested < level + 3.3 * spread


def test_too_few_rows_promise_by_naming_every_label():
    # Red for: the largest score taken instead, which holds the promise in 9 of 10 cases at most.
    probabilities, labels = overconfident_rows(np.random.default_rng(0), 18)
    for options in METHODS.values():
        sets = calibrate_conformal(probabilities, labels, level=0.95, **options)
        assert sets.quantile == math.inf and sets.sets(probabilities).all()
    more, labels = overconfident_rows(np.random.default_rng(0), 19)
    assert calibrate_conformal(more, labels, level=0.95).quantile < math.inf


def test_a_place_in_the_order_that_is_a_whole_number_but_for_rounding_is_that_number():
    # Red for: 100 * 0.55 = 55.00000000000001, which is not the 56th score.
    p = np.linspace(0.99, 0.01, 99)
    sets = calibrate_conformal(np.stack([p, 1 - p], axis=1), np.zeros(99, dtype=int), level=0.55, method="lac")
    assert sets.quantile == pytest.approx(0.55)


def test_randomised_sets_are_the_same_every_time_and_differ_with_the_seed():
    # Red for: a global generator, or a seed that is ignored.
    probabilities, labels = overconfident_rows(np.random.default_rng(0), 200)
    first, again, other = (calibrate_conformal(probabilities, labels, level=0.9, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert (first.sets(probabilities) == again.sets(probabilities)).all()
    assert not (first.sets(probabilities) == other.sets(probabilities)).all()


@pytest.mark.parametrize("seed", range(4))
def test_randomised_coverage_is_exact_for_every_seed(seed):
    # Red for: random numbers by place, which are the same for every data set of this size: a coverage off by 0.01 for most seeds.
    generator = np.random.default_rng(100)
    covered = []
    for _ in range(1500):
        sets = calibrate_conformal(*overconfident_rows(generator, 49), level=0.9, seed=seed)
        probabilities, labels = overconfident_rows(generator, 40)
        covered.append(sets.sets(probabilities)[np.arange(40), labels].mean())
    error = math.sqrt(0.09 * (1 / 40 + (1 - 1 / 40) / 51) / 1500)  # 45 of 50 is 0.9
    assert abs(np.mean(covered) - 0.9) < 3.5 * error


def test_a_random_number_belongs_to_the_row_not_to_its_place():
    # Red for: a set that depends on which rows come along, or a quantile on their order.
    probabilities, labels = overconfident_rows(np.random.default_rng(0), 200)
    order = np.random.default_rng(1).permutation(200)
    sets = calibrate_conformal(probabilities, labels, level=0.9, seed=1)
    assert calibrate_conformal(probabilities[order], labels[order], level=0.9, seed=1) == sets
    assert (sets.sets(probabilities[order]) == sets.sets(probabilities)[order]).all()
    assert (sets.sets(np.where(probabilities == 0, -0.0, probabilities)) == sets.sets(probabilities)).all()
    # And it is uniform: over many rows the mean of u is 1/2, and its square has the mean 1/3.
    rows, _ = overconfident_rows(np.random.default_rng(2), 4000)
    u = (rows.max(axis=1) - sets._scores(rows)[np.arange(4000), rows.argmax(axis=1)]) / rows.max(axis=1)
    assert kstest(u, "uniform").pvalue > 0.01


@pytest.mark.parametrize("accuracy", [0.7, 0.85])
def test_sets_of_two_classes_carry_information_below_the_level_by_lac_and_randomised_aps(accuracy):
    # Red for: an advice that is no way out. Plain "aps" names both labels of every row once the accuracy is below the level.
    generator = np.random.default_rng(0)
    p = generator.beta(4, 4 * (1 - accuracy) / accuracy, size=4000)  # mean: the accuracy
    rows = np.stack([p, 1 - p], axis=1)
    labels = (generator.random(4000) > p).astype(int)
    sizes = {}
    for name in ("lac", "aps", "aps, randomised"):
        sets = calibrate_conformal(rows[:2000], labels[:2000], level=0.95, **METHODS[name]).sets(rows[2000:])
        sizes[name] = sets.sum(axis=1).mean()
        assert abs(sets[np.arange(2000), labels[2000:]].mean() - 0.95) < 0.02 or name == "aps"
    assert sizes["aps"] == 2 and sizes["lac"] < 1.9 and sizes["aps, randomised"] < 1.95


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "best"}, "one of"),
        ({"level": 1.0}, "between 0 and 1"),
        ({"level": 90}, "between 0 and 1"),
        ({"method": "raps", "penalty": -1.0}, ">= 0"),
        ({"labels": np.array([0, 6])}, "class number"),
        ({"labels": np.array([0])}, "class number"),
        ({"probabilities": np.ones((2, 3))}, "sum to 1"),
        ({"probabilities": np.ones(2)}, "shape"),
        ({"labels": np.zeros(0), "probabilities": np.zeros((0, 3))}, "least 1 row|shape"),
    ],
)
def test_what_makes_no_promise_is_refused(change, said):
    # Red for: logits taken for probabilities, level=90 for 90 %.
    arguments = {"probabilities": np.array([[0.2, 0.8], [0.5, 0.5]]), "labels": np.array([0, 1]), "level": 0.9} | change
    with pytest.raises(ValueError, match=said):
        calibrate_conformal(arguments.pop("probabilities"), arguments.pop("labels"), **arguments)


def test_a_value_from_a_file_checks_itself():
    # Red for: NaN, which no score is below, for a quantile.
    with pytest.raises(ValueError, match="quantile"):
        ConformalSets("aps", math.nan, 0.9, 10)
