import math

import numpy as np
import pytest
from scipy.special import softmax

from swag_trainer.metrics.calibration import fit_temperature
from swag_trainer.metrics.temperature import averaged_nll, fit_averaged_temperature


def random_draws(seed, draws=5, rows=60, classes=4, spread=1.0):
    """Logits of draws that scatter about a truth which the labels follow, too sure of themselves by a factor of 2."""
    generator = np.random.default_rng(seed)
    truth = 1.5 * generator.normal(size=(rows, classes))
    labels = np.array([generator.choice(classes, p=p) for p in softmax(truth, axis=1)])
    return 2 * (truth + spread * generator.normal(size=(draws, rows, classes))), labels


def slow_nll(logits, labels, temperature):
    total = 0.0
    for row, label in enumerate(labels):
        total -= math.log(np.mean([softmax(draw[row] / temperature)[label] for draw in logits]))
    return total / len(labels)


def test_the_nll_is_that_of_the_average_of_the_draws_probabilities():
    # Red for: averaged logits, averaged log-likelihoods, the average divided by the temperature.
    for seed in range(5):
        logits, labels = random_draws(seed)
        for temperature in (0.5, 1.0, 3.0):
            assert averaged_nll(logits, labels, temperature) == pytest.approx(slow_nll(logits, labels, temperature), abs=1e-12)
            probabilities = softmax(logits, axis=-1)
            assert averaged_nll(np.log(probabilities), labels, temperature) == pytest.approx(
                slow_nll(logits, labels, temperature), abs=1e-9
            )


def test_the_nll_of_a_thousand_averages_is_that_of_the_slow_sum():
    # Red for: the number of draws left out of the mean, the temperature on one draw alone, a single row or draw that is dropped.
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        draws, rows, classes = generator.integers(1, 5), generator.integers(1, 8), generator.integers(2, 5)
        logits, labels = generator.normal(size=(draws, rows, classes)) * 5, generator.integers(classes, size=rows)
        if seed % 5 == 1:
            logits = logits.round()
        elif seed % 5 == 2:
            logits = np.zeros_like(logits)
        elif seed % 5 == 3:
            logits = np.tile(30 * np.eye(classes)[labels], (draws, 1, 1))
        elif seed % 5 == 4:
            labels = np.zeros_like(labels)
        temperature = float(generator.uniform(0.3, 3))
        averages = np.exp(logits / temperature) / np.exp(logits / temperature).sum(axis=2, keepdims=True)
        expected = -np.mean([math.log(averages[:, row, label].mean()) for row, label in enumerate(labels)])
        assert averaged_nll(logits, labels, temperature) == pytest.approx(expected, abs=1e-9)


def test_no_other_temperature_has_a_lower_penalised_nll():
    # Red for: a search that stays in the valley it starts in, a penalty that does not fade, one for T in place of log T.
    for seed in range(20):
        logits, labels = random_draws(seed, rows=int(20 + 10 * seed), spread=seed / 5)
        best, figure = fit_averaged_temperature(logits, labels)
        candidates = np.exp(np.linspace(-3, 3, 301))
        slow = [averaged_nll(logits, labels, T) + math.log(T) ** 2 / (2 * 0.5**2 * len(labels)) for T in [best, *candidates]]
        assert slow[0] <= min(slow) + 1e-6
        assert figure == pytest.approx(slow[0])


def test_for_a_single_draw_and_many_rows_it_is_the_ordinary_temperature():
    # Red for: a temperature that multiplies, or a penalty that many rows do not drown.
    logits, labels = random_draws(0, draws=1, rows=4000)
    assert fit_averaged_temperature(logits, labels)[0] == pytest.approx(fit_temperature(logits[0], labels), rel=5e-3)


def test_rows_that_are_all_answered_rightly_do_not_make_the_model_certain():
    # Red for: no penalty: the likelihood of 100 right answers grows for ever as T falls.
    logits, labels = random_draws(0, draws=3, rows=100, spread=0.1)
    labels = logits.mean(axis=0).argmax(axis=1)
    assert fit_temperature(logits.mean(axis=0), labels, prior_std=None) < 0.05
    assert fit_averaged_temperature(logits, labels)[0] > 0.2
