"""Held-out distances by cross-fitting, and what the OOD score is fitted to."""

import numpy as np
import pytest
from lively import short_run
from transformers import default_data_collator

from swag_trainer import SwagError
from swag_trainer.calibration.ood import cross_fitted, with_ood_score
from swag_trainer.posterior.features import fit
from swag_trainer.tasks import task_named
from swag_trainer.tasks.features import MeanFeatures
from swag_trainer.tasks.sequence_classification import SequenceClassification


def some_features(num_examples, seed, shift=0.0):
    random = np.random.default_rng(seed)
    labels = random.integers(4, size=num_examples)
    means = 4 * np.random.default_rng(99).normal(size=(4, 12))
    return means[labels] + random.normal(size=(num_examples, 12)) + shift, labels


def test_each_distance_comes_from_a_fit_without_the_example():
    # Red for: distances from the fit to all examples, folds that do not hold every class, one fold's distances at another's places.
    features, labels = some_features(60, 0)
    value = cross_fitted(features, labels)
    order = np.argsort(labels, kind="stable")
    expected = np.empty(60)
    for fold in range(5):
        out = order[fold::5]
        kept = np.setdiff1d(np.arange(60), out)
        assert set(labels[kept]) == {0, 1, 2, 3}
        expected[out] = fit(features[kept], labels[kept]).distance(features[out])
    np.testing.assert_allclose(value.held_out, np.sort(expected))
    np.testing.assert_allclose(value.distance(features), fit(features, labels).distance(features))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_a_cross_fitted_score_raises_no_more_false_alarms_than_promised_and_finds_shifted_examples(level):
    # Red for: distances of examples that the fit has seen, which are too small: .18 false alarms at .95 in place of .03.
    alarms, found = [], []
    for seed in range(60):
        value = cross_fitted(*some_features(60, seed))
        alarms.append((value.score(some_features(100, 1000 + seed)[0]) >= level).mean())
        found.append((value.score(some_features(100, 2000 + seed, shift=4.0)[0]) >= level).mean())
    assert np.mean(alarms) <= 1 - level + 0.01
    assert np.mean(found) > 0.9


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    return short_run(base_folder, texts, tmp_path_factory.mktemp("run"))


def labelled_texts(tokenizer, texts):
    return [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]


def scored(run, rows, posterior=None, **options):
    labels = np.array([row["labels"] for row in rows])
    model, original, _ = run
    settings = {"task": task_named(None), "data_collator": default_data_collator, **options}
    return with_ood_score(posterior or original, model, rows, labels, **settings)


def test_class_means_come_from_training_examples_before_the_posteriors_own_before_the_held_out_ones(run, texts):
    # Red for: another order of the three, batches of rows that the default collator cannot pad, held-out distances that stay, a second cross-fitting of examples that the fit has seen.
    train, held_out, others = (
        labelled_texts(run[2], texts[:8]),
        labelled_texts(run[2], texts[8:]),
        labelled_texts(run[2], texts[:15]),
    )
    features = MeanFeatures(*run[:2], task=task_named(None))
    trained_on, seen = (features.of_rows(rows, data_collator=default_data_collator, batch_size=4) for rows in (train, held_out))
    fitted = fit(trained_on, np.arange(8) % 3)

    given = scored(run, held_out, train_data=train)
    np.testing.assert_allclose(given.features.held_out, np.sort(fitted.distance(seen)), rtol=1e-4)
    kept = scored(run, held_out, run[1].with_features(fitted.with_held_out([1.0])))
    np.testing.assert_allclose(kept.features.held_out, np.sort(fitted.distance(seen)), rtol=1e-4)
    own = scored(run, held_out)
    assert own.features.cross_fitted and own.features.num_held_out == 16 and not given.features.cross_fitted
    np.testing.assert_allclose(own.features.held_out, cross_fitted(seen, np.arange(16) % 3).held_out, rtol=1e-3)
    again = scored(run, held_out, own)
    np.testing.assert_allclose(again.features.held_out, own.features.held_out, rtol=1e-3)
    assert scored(run, others[:14]).features is None  # fewer than five per class
    assert scored(run, held_out, own.with_features(None), train_data=iter(train)).features.num_held_out == 16


def test_a_model_without_features_has_no_score_and_says_so_where_one_was_asked_for(run, texts, monkeypatch):
    # Red for: a tuning that fails where nobody asked for an OOD score, a training set that is ignored in silence.
    monkeypatch.setattr(SequenceClassification, "features", lambda self, given, made, logits: None)
    rows = labelled_texts(run[2], texts)
    assert scored(run, rows).features is None
    with pytest.raises(SwagError, match="finds no features in BertForSequenceClassification"):
        scored(run, rows, train_data=rows)
