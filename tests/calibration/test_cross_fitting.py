"""Choice and cross-fitting, compared with slow loops over a fine grid of temperatures."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from swag_trainer.calibration.cross_fitting import CandidateLogits, choose, cross_fitted, folds_of
from swag_trainer.metrics.temperature import fit_temperature

TEMPERATURES = np.exp(np.linspace(-1.2, 1.2, 601))


def some_candidates(num_examples=40, num_classes=3, seed=0):
    """Candidates of which none is always the best, with the labels."""
    generator = np.random.default_rng(seed)
    truth = 1.5 * generator.normal(size=(num_examples, num_classes))
    labels = np.array([generator.choice(num_classes, p=np.exp(row) / np.exp(row).sum()) for row in truth])

    def draws(number, noise, sharpness):
        return sharpness * (truth + noise * generator.normal(size=(number, num_examples, num_classes)))

    return [
        CandidateLogits("mean", 0.0, False, draws(1, 0.9, 2.0), labels),
        CandidateLogits("last", 1.0, False, draws(5, 1.2, 1.5), labels),
        CandidateLogits("last", 8.0, False, draws(4, 1.2, 1.5), labels, np.array([0.1, 0.2, 0.3, 0.4])),
        CandidateLogits("mean", 1.0, True, draws(6, 1.4, 0.8), labels),
    ], labels


def loss(candidate, labels, examples, temperature, prior_std=0.2):
    """The negative logarithm of prior times likelihood, example by example and draw by draw."""
    weights = candidate.weights if candidate.weights is not None else np.full(len(candidate.logits), 1 / len(candidate.logits))
    total = np.log(temperature) ** 2 / (2 * prior_std**2)
    total += 2.0 * candidate.dropout + 2.0 * (candidate.center != "mean" or candidate.scale == 0)
    total += np.log(candidate.scale) ** 2 / (2 * np.log(4) ** 2) if candidate.scale else 0.0
    for example in examples:
        logits = candidate.logits[:, example] / temperature
        likelihood = np.exp(logits[:, labels[example]]) / np.exp(logits).sum(axis=1)
        total -= np.log((weights * likelihood).sum())
    return total


def slow_choice(candidates, labels, examples, prior_std=0.2):
    losses = np.array([[loss(each, labels, examples, T, prior_std) for T in TEMPERATURES[::20]] for each in candidates])
    best, around = np.unravel_index(losses.argmin(), losses.shape)
    near = TEMPERATURES[max(0, 20 * around - 20) : 20 * around + 21]
    return best, min(near, key=lambda T: loss(candidates[best], labels, examples, T, prior_std))


@pytest.mark.parametrize("prior_std", [0.2, 1.0])
def test_the_choice_is_the_best_of_all_candidates_at_all_temperatures(prior_std):
    # Red for: penalties per example in place of in total, the mean over draws of log-likelihoods, weights of draws or some examples ignored.
    for seed in range(2):
        candidates, labels = some_candidates(seed=seed)
        examples = np.arange(0, 40, 2)
        choice = choose(candidates, examples, prior_std=prior_std)
        best, temperature = slow_choice(candidates, labels, examples, prior_std)
        assert choice.best == best
        assert choice.temperature == pytest.approx(temperature, rel=0.003)


@pytest.mark.parametrize(
    ("center", "scale", "dropout", "nats"),
    [
        ("mean", 1.0, True, 2.0),
        ("mean", 4.0, False, 0.5),
        ("mean", 0.25, True, 2.5),
        ("mean", 16.0, False, 2.0),
        ("mean", 0.0, False, 2.0),
        ("tail", 0.0, False, 2.0),
        ("last", 1.0, False, 2.0),
        ("last", 1.0, True, 4.0),
    ],
)
def test_what_departs_from_draws_around_the_mean_has_to_be_better_by_some_nats_in_total(center, scale, dropout, nats):
    # Red for: a prior that grows or fades with the number of examples, one in favour of dropout or of other scales, a free choice of centres.
    labels, examples = np.arange(40) % 2, np.arange(40)
    even = CandidateLogits("mean", 1.0, False, np.zeros((1, 40, 2)), labels)
    for gain, best in ((nats - 0.1, 0), (nats + 0.1, 1)):
        probability = 0.5 * np.exp(gain / 40)
        logits = np.log(np.where(labels[:, None] == [0, 1], probability, 1 - probability))
        other = CandidateLogits(center, scale, dropout, logits[None], labels)
        # A prior this narrow keeps the temperature at 1.
        assert choose([even, other], examples, prior_std=1e-4).best == best


def test_predictions_of_a_fold_are_those_of_a_slow_loop_over_the_folds():
    # Red for: the choice of all examples used for each fold, a fold that chooses for itself, probabilities in the order of the folds.
    candidates, labels = some_candidates(seed=0)
    folds = folds_of(40, seed=7)
    found = cross_fitted(candidates, folds)
    chosen = set()
    for fold in folds:
        others = [example for example in range(40) if example not in fold]
        best, temperature = slow_choice(candidates, labels, others)
        chosen.add(best)
        weights = candidates[best].weights
        for example in fold:
            probabilities = softmax(candidates[best].logits[:, example] / temperature, axis=-1)
            expected = np.average(probabilities, axis=0, weights=weights)
            np.testing.assert_allclose(found[example], expected, atol=2e-3)
    assert len(chosen) > 1


def test_the_label_of_an_example_does_not_change_its_own_prediction():
    # Red for: a leak of the label through the choice of candidate or temperature.
    candidates, labels = some_candidates()
    folds = folds_of(40, seed=0)
    before = cross_fitted(candidates, folds)
    changed = labels.copy()
    changed[folds[2]] = (labels[folds[2]] + 1) % 3
    after = cross_fitted([replace(each, labels=changed) for each in candidates], folds)
    assert np.array_equal(before[folds[2]], after[folds[2]])
    assert not np.array_equal(before, after)


def test_a_temperature_is_that_of_an_exact_search():
    # Red for: a point of the grid in place of the vertex, a vertex on the wrong side, a temperature outside of the grid.
    candidates, labels = some_candidates(num_examples=200, seed=5)
    for each in candidates:
        for sharpness in (0.2, 1.0, 4.0):
            sharper = replace(each, logits=sharpness * each.logits)
            found, _ = sharper.fit(np.arange(200), prior_std=0.5)
            exact = fit_temperature(sharper.logits, labels, prior_std=0.5, weights=each.weights)
            assert found == pytest.approx(exact, rel=1e-3)
    labels = np.arange(200) % 2
    certain = CandidateLogits("mean", 0.0, False, 1e2 * np.eye(2)[None, 1 - labels], labels)
    assert certain.fit(np.arange(200), prior_std=100.0)[0] == pytest.approx(20.1, rel=0.06)
    assert certain.nll() == pytest.approx(-np.log(np.finfo(np.float64).eps)) == certain.losses[60].mean()


def test_folds_divide_the_examples_and_follow_the_seed():
    # Red for: examples in two folds or in none, folds in the order of the data.
    folds = folds_of(23, seed=-1)
    assert sorted(np.concatenate(folds)) == list(range(23)) and sorted(map(len, folds)) == [4, 4, 5, 5, 5]
    assert not np.array_equal(np.concatenate(folds), np.concatenate(folds_of(23, seed=2)))
    assert not np.array_equal(np.concatenate(folds), np.arange(23))
