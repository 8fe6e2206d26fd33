"""The distance to the nearest class and its score, against dense matrices, scikit-learn and simulation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from swag_trainer.errors import PosteriorFormatError, SwagError
from swag_trainer.posterior import features as module
from swag_trainer.posterior.features import FeatureDistribution, fit


def some_features(num_examples=120, size=16, num_classes=4, seed=0):
    """Classes of different sizes, with correlated features of very different variances."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), random.integers(num_classes, size=num_examples - num_classes)])
    mixing = random.normal(size=(size, size)) * np.geomspace(1, 1e-2, size)
    means = 3 * np.random.default_rng(99).normal(size=(num_classes, size))
    return (5 + means[labels] + random.normal(size=(num_examples, size)) @ mixing).astype(np.float32), labels


def dense_distance(features, labels, others):
    """Distances by scikit-learn's covariance, inverted."""
    features, others = features.astype(np.float64), np.asarray(others, dtype=np.float64)
    means = {label: features[labels == label].mean(axis=0) for label in set(labels.tolist())}
    centred = features - np.stack([means[label] for label in labels.tolist()])
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(centred).covariance_)
    return np.sqrt([min((row - mean) @ inverse @ (row - mean) for mean in means.values()) for row in others])


@pytest.mark.parametrize(("num_examples", "size"), [(120, 16), (30, 64), (64, 64)])
def test_the_distance_is_that_of_a_dense_shrunk_covariance(num_examples, size):
    # Red for: a covariance around the overall mean, an unshrunk one, a shrinkage with N for N^2, a null space of another variance, the
    # mean over the classes for their minimum, the squared distance.
    features, labels = some_features(num_examples, size)
    others = some_features(40, size, seed=5)[0] + np.linspace(0, 4, 40)[:, None].astype(np.float32)
    # 1e-4: means and directions are kept in float32.
    np.testing.assert_allclose(fit(features, labels).distance(others), dense_distance(features, labels, others), rtol=1e-4)


def test_with_many_dimensions_the_largest_directions_are_kept_and_the_others_share_the_rest(monkeypatch):
    # Red for: keeping the smallest directions, the sum of the dropped variances for their mean, a mean over all dimensions.
    features, labels = some_features(200, 24)
    whole = fit(features, labels)
    monkeypatch.setattr(module, "FULL_RANK", 20)
    monkeypatch.setattr(module, "LOW_RANK", 6)
    cut = fit(features, labels)
    assert cut.directions.shape == (6, 24)
    torch.testing.assert_close(cut.variances, whole.variances[:6])
    torch.testing.assert_close(cut.directions, whole.directions[:6])
    assert cut.residual == pytest.approx(float(whole.variances[6:].mean()), rel=1e-5)


def test_many_dimensions_do_not_need_many_examples(monkeypatch):
    # Red for: a residual that forgets the dimensions in which the training examples do not vary at all.
    features, labels = some_features(30, 64)
    exact = fit(features, labels)
    monkeypatch.setattr(module, "FULL_RANK", 20)
    monkeypatch.setattr(module, "LOW_RANK", 10)
    cut = fit(features, labels)
    total = float(exact.variances.sum()) + (64 - len(exact.variances)) * exact.residual
    assert float(cut.variances.sum()) + 54 * cut.residual == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_a_held_out_example_is_called_out_of_distribution_no_more_often_than_promised(level):
    # Red for: k / n for k / (n + 1), a count of the distances that are equal, a threshold that the interpolated tail shifts.
    random = np.random.default_rng(0)
    value = fit(*some_features())
    rates = []
    for _ in range(300):
        distances = random.exponential(size=40 + 100)
        scored = scores_of(value.with_held_out(distances[:40]), distances[40:])
        rates.append((scored >= level).mean())
    limit = 3 * np.std(rates) / len(rates) ** 0.5
    assert 1 - level - 1 / 41 - limit < np.mean(rates) <= 1 - level + limit


def scores_of(value, distances):
    """Scores of examples at given distances along the first direction, from a distribution with a single mean at 0."""
    single = FeatureDistribution(
        torch.zeros(1, value.means.shape[1]), value.directions, value.variances, value.residual, value.held_out
    )
    step = (value.directions[0].double() * value.variances[0].double().sqrt()).numpy()
    return single.score(np.asarray(distances)[:, None] * step)


def test_the_score_is_a_fraction_of_held_out_examples_and_rises_beyond_the_last():
    # Red for: a score of 1 for all that lies beyond the largest distance (no AUROC then), held-out distances that are not sorted.
    value = fit(*some_features()).with_held_out([3.0, 1.0, 2.0, 4.0])
    scores = scores_of(value, [0.5, 1.5, 2.5, 3.5, 4.5, 8.0, 1e9])
    np.testing.assert_allclose(scores[:5], [0, 0.2, 0.4, 0.6, (5 - 4 / 4.5) / 5], rtol=1e-4)  # float32 directions
    assert (np.diff(scores) > 0).all() and scores[-1] < 1
    assert value.highest_level == 0.8
    features, _ = some_features()
    own = value.with_held_out(value.distance(features))
    np.testing.assert_allclose(np.sort(own.score(features)), np.arange(120) / 121)  # an equal distance is not a smaller one


def test_tensors_give_the_same_distribution_back():
    # Red for: a tensor that is not written, a residual in another precision, held-out distances rounded to float32.
    features, labels = some_features()
    value = replace(fit(features, labels).with_held_out(np.random.default_rng(0).exponential(size=30)), cross_fitted=True)
    back = FeatureDistribution.from_tensors({**value.tensors(), "mean/x": torch.zeros(1)}, where="it")
    np.testing.assert_array_equal(back.distance(features), value.distance(features))
    np.testing.assert_array_equal(back.held_out, value.held_out)
    assert back.cross_fitted is True
    assert FeatureDistribution.from_tensors({"mean/x": torch.zeros(1)}, where="it") is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("means", lambda tensor: tensor[0]),
        ("means", lambda tensor: tensor[:0]),
        ("means", lambda tensor: tensor.double()),
        ("directions", lambda tensor: tensor[:, 1:]),
        ("directions", lambda tensor: tensor[1:]),
        ("variances", lambda tensor: -tensor),
        ("variances", lambda tensor: tensor[:, None]),
        ("residual", lambda tensor: 0 * tensor),
        ("residual", lambda tensor: tensor.repeat(2)),
        ("held_out", lambda tensor: tensor.flip(0)),
        ("held_out", lambda tensor: -tensor.flip(0)),
        ("held_out", lambda tensor: tensor[None]),
        ("held_out", lambda tensor: None),
        ("cross_fitted", lambda tensor: tensor.repeat(2)),
        ("cross_fitted", lambda tensor: tensor.float()),
        ("another", lambda tensor: torch.zeros(1)),
    ],
)
def test_what_cannot_be_a_distribution_is_refused_as_a_file(name, change):
    # Red for: any check of `from_tensors` left out.
    tensors = fit(*some_features()).with_held_out([1.0, 2.0]).tensors()
    changed = change(tensors.get(f"ood/{name}"))
    tensors = (
        {**tensors, f"ood/{name}": changed} if changed is not None else {k: v for k, v in tensors.items() if k != f"ood/{name}"}
    )
    with pytest.raises(PosteriorFormatError, match=r"^it"):
        FeatureDistribution.from_tensors(tensors, where="it")


def test_features_that_have_no_distribution_are_refused():
    # Red for: a division by a variance of 0, a broadcast of labels, a score without held-out examples, features of another model.
    features, labels = some_features()
    for bad, expected in (
        ((features[:4], np.arange(4)), "no variance"),
        ((features, labels[:, None]), "label each"),
        ((np.where(labels[:, None] == 0, np.nan, features), labels), "finite"),
    ):
        with pytest.raises(SwagError, match=expected):
            fit(*bad)
    with pytest.raises(SwagError, match="none have been seen"):
        fit(features, labels).score(features)
    with pytest.raises(SwagError, match="16 dimensions"):
        fit(features, labels).distance(features[:, 1:])
