import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probability_cases import KINDS, equal_mass, filled_bins, probability_case, probability_cases
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, matthews_corrcoef

from swag_trainer.metrics.scores import (
    accuracy,
    brier_decomposition,
    brier_score,
    macro_f1,
    matthews_correlation,
    negative_log_likelihood,
)


def test_scores_of_answers_are_those_of_scikit_learn():
    # Red for: classes counted that nobody saw, ties given to the last class, a NaN where all labels are one class.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, about labels of one class only
        for probabilities, labels in probability_cases(1000):
            answers = probabilities.argmax(axis=1)
            assert accuracy(probabilities, labels) == pytest.approx(accuracy_score(labels, answers), abs=1e-9)
            f1 = f1_score(labels, answers, average="macro", zero_division=0)
            assert macro_f1(probabilities, labels) == pytest.approx(f1, abs=1e-9)
            assert matthews_correlation(probabilities, labels) == pytest.approx(matthews_corrcoef(labels, answers), abs=1e-9)


def test_the_likelihood_and_the_brier_score_are_those_of_scikit_learn():
    # Red for: base 2, a sum, another clip, one half of the Brier score, the second class alone.
    for probabilities, labels in probability_cases(1000):
        classes = np.arange(probabilities.shape[1])
        nll = log_loss(labels, probabilities, labels=classes)
        assert negative_log_likelihood(probabilities, labels) == pytest.approx(nll, abs=1e-6)
        brier = brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
        assert brier_score(probabilities, labels) == pytest.approx(brier, abs=1e-9)


def test_a_certain_and_wrong_row_costs_as_much_as_is_documented():
    # Red for: infinity, or a clip that makes certain errors cheap.
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(36.04, abs=0.005)
    assert negative_log_likelihood([[1.0, 0.0]], [0]) == 0
    assert brier_score([[1.0, 0.0]], [1]) == 2


def slow_parts(probabilities, labels, edges_of):
    """(reliability, resolution, uncertainty, what is missing to the score), class by class and bin by bin."""
    rows, total = len(labels), np.zeros(3)
    for c, column in enumerate(probabilities.T):
        frequency = np.mean(labels == c)
        for inside in filled_bins(column, edges_of(column)):
            mean, share = column[inside].mean(), np.mean(labels[inside] == c)
            total[:2] += np.array([(mean - share) ** 2, (share - frequency) ** 2]) * inside.sum() / rows
        total[2] += frequency * (1 - frequency)
    score = (
        sum((1 - p[label]) ** 2 + (p**2).sum() - p[label] ** 2 for p, label in zip(probabilities, labels, strict=True)) / rows
    )
    return [*total, score - (total[0] - total[1] + total[2])]


@pytest.mark.parametrize("scheme", ["uniform", "quantile"])
def test_the_parts_of_the_brier_score_are_those_of_murphy(scheme):
    # Red for: resolution and reliability exchanged, bins of the top label, parts averaged over the classes, a scheme left out.
    widths = [index / 5 for index in range(6)]
    for probabilities, labels in probability_cases(1000):
        parts = brier_decomposition(probabilities, labels, num_bins=5, scheme=scheme)
        expected = slow_parts(probabilities, labels, lambda p: equal_mass(p, 5) if scheme == "quantile" else widths)
        found = [parts.reliability, parts.resolution, parts.uncertainty, parts.remainder]
        np.testing.assert_allclose(found, expected, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.integers(1, 40), st.sampled_from(["uniform", "quantile"]))
def test_the_parts_add_up_to_the_score_whatever_the_bins(kind, seed, num_bins, scheme):
    # Red for: a remainder with half of its covariance, or left out.
    probabilities, labels = probability_case(kind, seed=seed)
    parts = brier_decomposition(probabilities, labels, num_bins=num_bins, scheme=scheme)
    assert parts.score == pytest.approx(brier_score(probabilities, labels), abs=1e-12)
    assert min(parts.reliability, parts.resolution, parts.uncertainty) >= 0


def test_one_probability_in_a_bin_leaves_no_remainder():
    # Red for: a remainder that is whatever is missing, so that the parts add up though they are wrong.
    probabilities, labels = probability_case("ties", seed=1)  # eighths: of nine bins each holds one of them
    assert brier_decomposition(probabilities, labels, num_bins=9).remainder == pytest.approx(0, abs=1e-12)
    assert abs(brier_decomposition(probabilities, labels, num_bins=2).remainder) > 1e-3
