import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from swag_trainer.metrics.scores import negative_log_likelihood
from swag_trainer.metrics.temperature import averaged_nll, fit_temperature, penalised_nll


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
        means = [max(averages[:, row, label].mean(), np.finfo(float).eps) for row, label in enumerate(labels)]
        expected = -np.mean(np.log(means))
        assert averaged_nll(logits, labels, temperature) == pytest.approx(expected, abs=1e-9)


def test_no_other_temperature_has_a_lower_penalised_nll():
    # Red for: a search that stays in the valley it starts in, a penalty that does not fade, one for T in place of log T.
    for seed in range(20):
        logits, labels = random_draws(seed, rows=int(20 + 10 * seed), spread=seed / 5)
        best = fit_temperature(logits, labels)
        candidates = np.exp(np.linspace(-3, 3, 301))
        slow = [averaged_nll(logits, labels, T) + math.log(T) ** 2 / (2 * 0.2**2 * len(labels)) for T in [best, *candidates]]
        assert slow[0] <= min(slow) + 1e-6
        assert penalised_nll(logits, labels, best) == pytest.approx(slow[0])


def test_a_single_draw_is_the_special_case():
    # Red for: a temperature that multiplies, draws and examples exchanged, a penalty divided by the number of draws.
    logits, labels = random_draws(0, draws=1)
    assert fit_temperature(logits, labels) == fit_temperature(logits[0], labels)
    assert fit_temperature(np.tile(logits, (3, 1, 1)), labels) == pytest.approx(fit_temperature(logits[0], labels), rel=1e-4)


def test_draws_of_a_mixture_count_by_their_weights():
    # Red for: weights that are ignored, or put onto the log-likelihoods. A draw of weight 2/3 is a draw that comes twice.
    logits, labels = random_draws(3, draws=2)
    twice, weights = logits[[0, 0, 1]], np.array([2 / 3, 1 / 3])
    assert averaged_nll(logits, labels, 1.5, weights=weights) == pytest.approx(averaged_nll(twice, labels, 1.5), rel=1e-12)
    assert fit_temperature(logits, labels, weights=weights) == pytest.approx(fit_temperature(twice, labels), rel=1e-6)
    assert fit_temperature(logits, labels, weights=weights) != fit_temperature(logits, labels)


def test_a_certain_and_wrong_prediction_costs_the_same_by_both_routes():
    # Red for: a floor of its own in one of the two, such as 690.8 nats from 1e-300 beside 36.04 from 2.2e-16.
    probabilities, labels = np.array([[1.0, 0.0], [0.25, 0.75]]), np.array([1, 1])
    logits = np.log(np.maximum(probabilities, np.finfo(float).tiny))[None]
    expected = (-math.log(np.finfo(float).eps) - math.log(0.75)) / 2
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(expected, rel=1e-12)
    assert averaged_nll(logits, labels) == pytest.approx(expected, rel=1e-12)
    assert averaged_nll(np.array([[[900.0, 0.0]]]), labels[:1]) == negative_log_likelihood(probabilities[:1], labels[:1])


def test_rows_that_are_all_answered_rightly_do_not_make_the_model_certain():
    # Red for: no penalty: the likelihood of 100 right answers grows for ever as T falls.
    logits, labels = random_draws(0, draws=3, rows=100, spread=0.1)
    labels = logits.mean(axis=0).argmax(axis=1)
    assert fit_temperature(logits.mean(axis=0), labels, prior_std=None) < 0.05
    assert fit_temperature(logits, labels) > 0.2


def random_task(seed, rows=400, classes=4):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, classes)) * 2
    labels = np.array([generator.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return logits, labels


def test_the_fitted_temperature_undoes_a_scaling_of_the_logits():
    # Red for: logits multiplied by the temperature, or its logarithm returned.
    logits, labels = random_task(0, rows=4000)
    once = fit_temperature(logits, labels, prior_std=None)
    assert once == pytest.approx(1.0, abs=0.1)  # the labels were drawn from these very probabilities
    assert fit_temperature(3 * logits, labels, prior_std=None) == pytest.approx(3 * once, rel=1e-3)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * once, rel=2e-2)  # 4,000 rows hardly feel the prior


@pytest.mark.parametrize("prior_std", [None, 0.5, 0.1])
def test_no_other_temperature_is_better(prior_std):
    # Red for: a search that stops early, one that minimises something else, a penalty not divided by N or by the variance.
    logits, labels = random_task(1)
    best = fit_temperature(2.5 * logits, labels, prior_std=prior_std)

    def loss(temperature):
        penalty = 0 if prior_std is None else np.log(temperature) ** 2 / (2 * prior_std**2 * len(labels))
        return log_loss(labels, softmax(2.5 * logits / temperature, axis=1)) + penalty

    losses = [loss(best * factor) for factor in (0.98, 1.0, 1.02)]
    assert losses[1] == min(losses)


def test_the_prior_keeps_few_rows_from_asking_for_certainty():
    # Red for: no prior by default. All of 100 rows are right, with margins of 1: the plain fit goes to the end of its range.
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=100)
    logits = np.eye(2)[labels] + 0.1 * generator.normal(size=(100, 2))
    assert fit_temperature(logits, labels, prior_std=None) < 0.02
    careful = fit_temperature(logits, labels)
    assert 0.1 < careful < 0.5
    wrong = 1 - labels[:5]  # other rows, five in a hundred answered wrong
    tested = np.concatenate([wrong, labels[5:]])
    nll = {t: -log_softmax(logits / t, axis=1)[np.arange(100), tested].mean() for t in (0.02, careful)}
    assert nll[careful] < nll[0.02] / 3


@pytest.mark.parametrize("prior_std", [0.0, -1.0, float("nan")])
def test_a_prior_without_width_is_refused(prior_std):
    # Red for: a division by zero, or a sign that is squared away.
    with pytest.raises(ValueError, match="prior_std"):
        fit_temperature(np.eye(2), np.array([0, 1]), prior_std=prior_std)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [(np.zeros((0, 2)), np.zeros(0)), (np.zeros((3, 2)), np.zeros(2)), (np.full((1, 2), np.inf), [0]), (np.eye(2), [0, 2])],
)
def test_logits_without_labels_have_no_temperature(logits, labels):
    # Red for: an index error, or a temperature of nothing.
    with pytest.raises(ValueError):
        fit_temperature(logits, labels)
