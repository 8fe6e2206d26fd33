import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import entropy

from swag_trainer.prediction.predictive import Predictive, RegressionPredictive, summarise
from swag_trainer.tasks import task_named

S, N, C = 7, 5, 3


def some_logits():
    return 2 * torch.randn(S, N, C, generator=torch.Generator().manual_seed(0))


def test_probabilities_are_averaged_not_logits():
    # Red for: the softmax of the mean logits.
    logits = some_logits()
    expected = torch.stack([draw.double().softmax(-1) for draw in logits]).mean(0)
    np.testing.assert_allclose(Predictive.from_logits(logits, "softmax").probabilities, expected, rtol=1e-12)


def test_uncertainty_is_that_of_the_definitions():
    # Red for: bits instead of nats, entropy of one draw, mutual information with its sign turned.
    logits = some_logits()
    predictive = Predictive.from_logits(logits, "softmax", keep_draws=True)
    for row in range(N):
        draws = logits[:, row].double().softmax(-1)
        total = entropy(draws.mean(0).tolist())
        aleatoric = sum(entropy(draw.tolist()) for draw in draws) / S
        assert predictive.entropy[row] == pytest.approx(total)
        assert predictive.aleatoric[row] == pytest.approx(aleatoric)
        assert predictive.mutual_information[row] == pytest.approx(total - aleatoric)
        votes = draws.argmax(-1).tolist()
        assert predictive.variation_ratio[row] == pytest.approx(1 - max(votes.count(label) for label in votes) / S)
        np.testing.assert_allclose(predictive.std[row], draws.numpy().std(axis=0), rtol=1e-9)
        np.testing.assert_allclose(predictive.standard_error[row], draws.numpy().std(axis=0, ddof=1) / math.sqrt(S), rtol=1e-9)
        np.testing.assert_allclose(predictive.draw_probabilities[:, row], draws.numpy())


def test_labels_that_do_not_exclude_each_other_are_judged_one_by_one():
    # Red for: a softmax over labels, or an entropy without the label's absence.
    logits = some_logits()
    predictive = Predictive.from_logits(logits, "sigmoid")
    draws = logits.double().sigmoid().numpy()
    mean = draws.mean(0)
    np.testing.assert_allclose(predictive.probabilities, mean, rtol=1e-12)
    expected = sum(entropy([mean[0, label], 1 - mean[0, label]]) for label in range(C))
    assert predictive.entropy[0] == pytest.approx(expected)
    share = (draws[:, 0] > 0.5).mean(0)
    assert predictive.variation_ratio[0] == pytest.approx(np.minimum(share, 1 - share).mean())


def test_equal_draws_share_all_uncertainty_and_one_draw_does_not_know_its_error():
    # Red for: a negative or tiny mutual information, or a standard error of 0 from one draw.
    logits = some_logits()[:1]
    one = Predictive.from_logits(logits, "softmax")
    assert (one.mutual_information == 0).all() and (one.std == 0).all()
    assert np.isnan(one.standard_error).all()
    many = Predictive.from_logits(logits.expand(9, -1, -1), "softmax")
    assert (many.mutual_information >= 0).all() and many.mutual_information.max() < 1e-12


def test_energy_is_the_mean_over_the_draws_at_the_temperature():
    # Red for: the energy of the mean logits, a sign turned, a temperature that does not scale back, an energy of labels.
    logits = some_logits()
    expected = [
        np.mean([-2 * math.log(sum(math.exp(x / 2) for x in draw[row].tolist())) for draw in logits]) for row in range(N)
    ]
    np.testing.assert_allclose(Predictive.from_logits(logits, "softmax", temperature=2.0).energy, expected, rtol=1e-6)
    assert Predictive.from_logits(logits, "sigmoid").energy is None


def test_a_certain_class_has_no_entropy():
    # Red for: 0 log 0 = NaN.
    predictive = Predictive.from_logits(torch.tensor([[[2000.0, 0.0, 0.0]]]), "softmax")
    assert predictive.entropy[0] == 0


def test_regression_has_mean_and_spread_of_the_outputs():
    # Red for: a sigmoid over a number, or a variance for a standard deviation.
    outputs = torch.tensor([[[1.0], [2.0]], [[3.0], [2.0]]])
    predictive = summarise(outputs, "identity")
    assert isinstance(predictive, RegressionPredictive)
    assert predictive.mean.tolist() == [[2.0], [2.0]]
    assert predictive.std.tolist() == [[1.0], [0.0]]
    assert predictive.standard_error.tolist() == [[1.0], [0.0]]


def test_batches_come_back_in_the_order_of_the_rows():
    # Red for: rows left in the order of their lengths, or draws joined along the wrong axis.
    logits = some_logits()
    whole = Predictive.from_logits(logits, "softmax", keep_draws=True)
    order = [3, 0, 4, 2, 1]
    parts = [Predictive.from_logits(logits[:, order[start : start + 2]], "softmax", keep_draws=True) for start in (0, 2, 4)]
    together = Predictive.from_batches(parts, order)
    np.testing.assert_array_equal(together.probabilities, whole.probabilities)
    np.testing.assert_array_equal(together.draw_probabilities, whole.draw_probabilities)
    assert len(together) == N


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "link"),
    [
        (None, 3, "softmax"),
        (None, 1, "sigmoid"),
        ("single_label_classification", 2, "softmax"),
        ("multi_label_classification", 4, "sigmoid"),
        ("regression", 1, "identity"),
    ],
)
def test_the_link_follows_transformers(problem_type, num_labels, link):
    # Red for: a regression squeezed through a sigmoid because it has one output.
    config = SimpleNamespace(problem_type=problem_type, num_labels=num_labels)
    assert task_named(None).link(config) == link
