import math

import numpy as np
import pytest

from swag_trainer.metrics.ood import auroc
from swag_trainer.metrics.selective import (
    area_under_generalised_risk_coverage,
    area_under_risk_coverage,
    coverage_at_risk,
    excess_area_under_risk_coverage,
    risk_coverage_curve,
    threshold_for_coverage,
    threshold_for_risk,
)


def random_case(seed):
    """Confidences with many ties in every second case, of 1 to 40 rows; all right and all wrong occur, equal and perfect ones too."""
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(1, 41))
    confidence = generator.integers(0, 5, rows) / 4 if seed % 2 else generator.normal(size=rows)
    correct = generator.random(rows) < generator.choice([0.0, 0.5, 0.9, 1.0])
    if seed % 10 == 8:
        confidence = np.full(rows, 0.7)
    elif seed % 10 == 9:
        confidence = correct.astype(float)
    return confidence, correct


def slow_points(confidence, correct):
    """(coverage, risk, threshold) by trying every confidence that there is as a threshold."""
    points = []
    for threshold in sorted(set(confidence.tolist()), reverse=True):
        accepted = [bool(right) for score, right in zip(confidence, correct, strict=True) if score >= threshold]
        points.append((len(accepted) / len(correct), accepted.count(False) / len(accepted), threshold))
    return points


def slow_area(confidence, correct):
    risk_at = {threshold: risk for _, risk, threshold in slow_points(confidence, correct)}
    return sum(risk_at[score] for score in confidence.tolist()) / len(confidence)


def test_the_augrc_is_that_of_the_papers_identity_with_the_auroc():
    # Red for: steps in the place of lines between the points, the risk among the accepted in the place of that among all, a first point that
    # is left out.
    for seed in range(200):
        confidence, correct = random_case(seed)
        accuracy = correct.mean()
        expected = (1 - accuracy) ** 2 / 2
        if 0 < accuracy < 1:
            expected += (1 - auroc(confidence[~correct], confidence[correct])) * accuracy * (1 - accuracy)
        assert area_under_generalised_risk_coverage(confidence, correct) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("block", range(10))
def test_curve_areas_and_thresholds_are_those_of_trying_every_threshold(block):
    # Red for: ties cut in two, > in place of >=, areas by trapezium, an excess over something else than the best order.
    for seed in range(100 * block, 100 * (block + 1)):
        confidence, correct = random_case(seed)
        points = slow_points(confidence, correct)
        curve = risk_coverage_curve(confidence, correct)
        np.testing.assert_allclose(np.stack([curve.coverage, curve.risk, curve.threshold], axis=1), points, atol=1e-12)
        area = slow_area(confidence, correct)
        assert area_under_risk_coverage(confidence, correct) == pytest.approx(area, abs=1e-12)
        best_order = np.array([row + (1000 if right else 0) for row, right in enumerate(correct)], dtype=float)
        excess = area - slow_area(best_order, correct)
        assert excess_area_under_risk_coverage(confidence, correct) == pytest.approx(excess, abs=1e-12)
        for risk in (0.01, 0.25, 0.5):
            allowed = [point for point in points if point[1] <= risk]
            assert coverage_at_risk(confidence, correct, risk) == max((point[0] for point in allowed), default=0)
            assert threshold_for_risk(confidence, correct, risk) == min((point[2] for point in allowed), default=math.inf)
        for coverage in (0.1, 0.5, 1.0):
            enough = [point[2] for point in points if point[0] >= coverage - 1e-12]
            assert threshold_for_coverage(confidence, coverage) == max(enough)


def test_the_area_of_a_hand_computation():
    # Red for: any other convention: risks of the 1, 2, 3 and 4 surest are 0, 1/2, 1/3 and 2/4; the best order's 0, 0, 1/3 and 2/4.
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    assert area_under_risk_coverage(confidence, correct) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert excess_area_under_risk_coverage(confidence, correct) == pytest.approx((1 / 2) / 4)


def test_a_coverage_that_is_a_whole_number_of_rows_but_for_rounding_takes_that_number():
    # Red for: ceil(0.07 * 100) = 8.
    assert threshold_for_coverage(np.arange(100.0), 0.07) == 93


@pytest.mark.parametrize("shape", ["risk grows with coverage", "risk falls with coverage", "risk goes up and down", "ties"])
def test_the_promised_risk_is_kept_as_often_as_promised(shape):
    # Red for: the full error for each of the ten tests, the risk of these rows in place of its bound, the tested row counted in.
    level, risk, rows, repeats = 0.8, 0.1, 400, 1000
    wrong_at = {
        "risk grows with coverage": lambda c: 0.25 * (1 - c),
        "risk falls with coverage": lambda c: 0.2 * c,
        "risk goes up and down": lambda c: 0.1 + 0.06 * np.sin(25 * c),
        "ties": lambda c: 0.25 * (1 - c),
    }[shape]
    generator = np.random.default_rng(0)
    population = generator.random(200_000)
    if shape == "ties":
        population = np.ceil(population * 8) / 8
    order = np.sort(population)
    # True risk of accepting everything at or above a place in the order.
    risk_from = np.append(np.cumsum(wrong_at(order)[::-1])[::-1] / np.arange(len(order), 0, -1), 0.0)
    broken = found = 0
    for _ in range(repeats):
        confidence = generator.choice(population, rows)
        correct = generator.random(rows) >= wrong_at(confidence)
        threshold = threshold_for_risk(confidence, correct, risk, level=level)
        found += math.isfinite(threshold) or threshold < 0
        broken += risk_from[np.searchsorted(order, threshold, side="left")] > risk
    # 1 - level of 1,000, and three standard deviations of a binomial count.
    assert broken <= (1 - level) * repeats + 3 * math.sqrt(level * (1 - level) * repeats)
    if shape == "risk grows with coverage":
        assert found > 0.9 * repeats


def test_a_promise_needs_rows_and_everything_may_be_accepted():
    # Red for: a threshold from rows that are too few to promise anything; thresholds that never accept all.
    sure = np.linspace(0.5, 1.0, 300)
    assert threshold_for_risk(sure[:20], np.ones(20), 0.05, level=0.95) == math.inf
    assert threshold_for_risk(sure, np.ones(300), 0.05, level=0.95) < 0.5
    # 0.95 ** m <= 0.005 needs m >= 104 rows without an error.
    assert threshold_for_risk(sure[:103], np.ones(103), 0.05, level=0.95) == math.inf
    assert threshold_for_risk(sure[:104], np.ones(104), 0.05, level=0.95) < 0.5
    # The rows in the place after the tested ones are not accepted: 150 right ones, then 150 wrong ones of one confidence.
    halves = np.repeat([0.9, 0.5], 150)
    assert 0.5 < threshold_for_risk(halves, halves > 0.7, 0.05, level=0.95) <= 0.9


@pytest.mark.parametrize(
    ("confidence", "correct"),
    [([], []), ([0.5, 0.6], [1]), ([[0.5]], [[1]]), ([np.nan, 0.5], [1, 0]), ([0.5, 0.6], [1, 2])],
)
def test_what_is_no_confidence_or_no_answer_is_refused(confidence, correct):
    # Red for: broadcasting, NaN sorted to one end, a class number taken for "right".
    with pytest.raises(ValueError, match="needed, got|finite|0 or 1"):
        risk_coverage_curve(np.array(confidence), np.array(correct))


@pytest.mark.parametrize("value", [0, 1, -0.1, 5])
def test_a_risk_in_per_cent_is_refused(value):
    # Red for: risk=5 taken for 500 %.
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_for_risk(np.array([0.5]), np.array([1]), value)
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_for_risk(np.array([0.5]), np.array([1]), 0.1, level=value)
