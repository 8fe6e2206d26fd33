"""The OOD score, from the training run that fits it through file and Hub to predictor and pipeline."""

import logging
import warnings

import numpy as np
import pytest
import torch
from conftest import WORDS, lora_model, trainer_for
from transformers import BertTokenizerFast, pipeline

from swag_trainer import MonteCarloPredictor, SwagCallback, SwagError, load_posterior, tune
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.cli.inspect import metadata_of
from swag_trainer.metrics.ood import auroc
from swag_trainer.posterior.features import fit
from swag_trainer.posterior.point import PointPosterior

KNOWN, UNKNOWN = WORDS[:12], WORDS[14:]


def some_texts(count, words, seed):
    """Texts whose class is that of the word that begins and ends them."""
    generator = np.random.default_rng(seed)
    texts = []
    for index in range(count):
        first = words[index % 3]
        texts.append(" ".join([first, *generator.choice(words[3:], size=generator.integers(1, 8)), first]))
    return texts


@pytest.fixture(scope="module")
def run(base_folder, tmp_path_factory):
    """A run with held-out examples: (trainer, callback, tokenizer, held-out texts). No test may change them."""
    tokenizer = BertTokenizerFast.from_pretrained(base_folder)
    folder = tmp_path_factory.mktemp("run")
    train, held_out = some_texts(48, KNOWN, 0), some_texts(30, KNOWN, 1)
    rows, eval_rows = ([{**tokenizer(text), "labels": i % 3} for i, text in enumerate(texts)] for texts in (train, held_out))
    swag = SwagCallback(rank=5, ood_features=True)
    model = lora_model(base_folder)
    trainer = trainer_for(model, rows, tokenizer, folder, callbacks=[swag], eval_rows=eval_rows, max_steps=60)
    trainer.train()
    trainer.model.eval()
    return trainer, swag, tokenizer, held_out


def features_by_hand(trainer, swag, tokenizer, texts):
    """What the classifier is given at the posterior's mean, one text at a time. The model holds the mean after training."""
    bert = trainer.model.get_base_model()
    torch.testing.assert_close(AdapterWeights(trainer.model).read(), dict(swag.posterior.mean))
    with torch.no_grad():
        return np.concatenate([bert.bert(**tokenizer(text, return_tensors="pt")).pooler_output.numpy() for text in texts])


def predicted(run, texts, **options):
    trainer, swag, tokenizer, _ = run
    predictor = MonteCarloPredictor(trainer.model, swag.posterior, progress=False, **options)
    return predictor.predict([dict(tokenizer(text)) for text in texts])


def test_predictor_and_pipeline_have_the_score_of_features_made_by_hand(run):
    # Red for: features of a draw, of the class logits, of another layer or with dropout, labels in another order, training examples as
    # held-out ones, scores in the order of the lengths.
    trainer, swag, tokenizer, held_out = run
    texts = some_texts(11, KNOWN, 2) + some_texts(5, UNKNOWN, 3)
    fitted = fit(features_by_hand(trainer, swag, tokenizer, some_texts(48, KNOWN, 0)), np.arange(48) % 3)
    distances = fitted.distance(features_by_hand(trainer, swag, tokenizer, held_out))
    expected = fitted.with_held_out(distances).score(features_by_hand(trainer, swag, tokenizer, texts))
    assert len(np.unique(expected)) > 5
    # 1e-3: where a distance is near a held-out one, nothing else than equal counts; beyond the last the score is continuous.
    np.testing.assert_allclose(predicted(run, texts).ood_score, expected, atol=1e-3)
    served = pipeline(
        "swag-text-classification", model=trainer.model, posterior=swag.posterior, tokenizer=tokenizer, device="cpu"
    )
    np.testing.assert_allclose([row["ood_score"] for row in served(texts, batch_size=4)], expected, atol=1e-3)
    np.testing.assert_allclose([ranks[2]["ood_score"] for ranks in served(texts, top_k=None)], expected, atol=1e-3)


def test_text_of_other_words_has_a_higher_score(run):
    # Red for: a score that falls with the distance, or that is taken from the training examples alone.
    inside, outside = some_texts(60, KNOWN, 7), some_texts(60, UNKNOWN, 8)
    scores = predicted(run, inside + outside).ood_score
    assert auroc(scores[:60], scores[60:]) > 0.9
    assert 0.3 < scores[:60].mean() < 0.7


@pytest.mark.parametrize("options", [{}, {"scale": 0.0}, {"max_error": 0.05}, {"method": "linearized"}, {"dropout": True}])
def test_the_score_costs_one_forward_and_does_not_depend_on_the_draws(run, options, monkeypatch):
    # Red for: scores at each draw, for each block of draws, with dropout, or a second forward at the mean.
    trainer, swag, tokenizer, _ = run
    texts = some_texts(4, KNOWN, 2)
    forwards = []
    bert = type(trainer.model.get_base_model().bert.embeddings)
    original = bert.forward
    monkeypatch.setattr(bert, "forward", lambda self, *args, **kwargs: forwards.append(self) or original(self, *args, **kwargs))
    predictor = MonteCarloPredictor(trainer.model, swag.posterior, progress=False, **options)
    batch = dict(tokenizer(texts[:1], return_tensors="pt"))
    predictor.predict(batch)  # the first prediction may trace the model
    forwards.clear()
    score = predictor.predict(batch).ood_score
    with_score = len(forwards)
    forwards.clear()
    plain = MonteCarloPredictor(trainer.model, swag.posterior.with_features(None), progress=False, **options)
    plain.predict(batch)
    forwards.clear()
    assert plain.predict(batch).ood_score is None
    assert with_score == len(forwards) + 1
    assert score == predicted(run, texts[:1]).ood_score


def test_the_score_does_not_depend_on_the_batch(run):
    # Red for: features of padded rows, scores in the order of the lengths.
    texts = some_texts(13, KNOWN, 2)
    whole = predicted(run, texts).ood_score
    np.testing.assert_allclose(np.concatenate([predicted(run, [text]).ood_score for text in texts]), whole, atol=1e-6)


def test_features_travel_through_file_hub_and_other_tunings(run, tmp_path, hub):
    # Red for: tensors that are not written or read, a digest without them, a change of scale that drops them.
    posterior = run[1].posterior
    assert posterior.features.num_held_out == 30
    posterior.save_pretrained(tmp_path / "saved", dtype="float32")
    posterior.push_to_hub("user/ood")
    for loaded in (load_posterior(tmp_path / "saved"), load_posterior("user/ood")):
        for name, tensor in posterior.features.tensors().items():
            torch.testing.assert_close(loaded.features.tensors()[name], tensor, rtol=0, atol=0)
        assert loaded.digest == posterior.digest != posterior.with_features(None).digest
        assert loaded.with_scale(2.0).features is loaded.features
        shown = {"class_means": 3, "dimensions": 32, "held_out_examples": 30, "cross_fitted": False}
        assert metadata_of(loaded)["ood_score"] == shown
    posterior.with_features(None).save_pretrained(tmp_path / "saved")
    assert load_posterior(tmp_path / "saved").features is None


def test_a_point_at_other_weights_has_no_features(run):
    # Red for: class means at the mean that score features at other weights.
    assert PointPosterior.at(run[1].posterior.last_snapshot(), run[1].posterior).features is None


def test_the_pipeline_abstains_from_what_lies_beyond_a_fraction_of_held_out_text(run):
    # Red for: > for >=, a label that stays, a reason that another one replaces, a level that the held-out examples cannot tell.
    trainer, swag, tokenizer, _ = run
    served = pipeline(
        "swag-text-classification", model=trainer.model, posterior=swag.posterior, tokenizer=tokenizer, device="cpu", ood=0.9
    )
    texts = some_texts(30, KNOWN, 2) + some_texts(10, UNKNOWN, 3)
    rows = served(texts)
    withheld = [row for row in rows if row["ood_score"] >= 0.9]
    assert 0 < len(withheld) < len(rows)
    for row in rows:
        assert (row["label"] is None) == (row["ood_score"] >= 0.9) == ("reason" in row)
    assert withheld[0]["top_label"] and "30 held-out examples" in withheld[0]["reason"]
    edge = sorted(row["ood_score"] for row in rows if row["ood_score"] < 0.9)[-1]
    assert sum(row["label"] is None for row in served(texts, ood=edge)) > len(withheld)
    both = served(texts[-1:], ood=edge, abstain_below=1.0)[0]
    assert "below 1.000" in both["reason"] and "OOD score" in both["reason"]
    assert all("reason" not in row for row in served(texts, ood=1))
    with pytest.raises(SwagError, match=r"ood=0\.99 needs .* 30 examples tell up to 0\.968"):
        served(texts[0], ood=0.99)


def test_without_features_or_held_out_examples_there_is_no_score_and_the_reason_is_given(run):
    # Red for: a score of a model without class means, or a fraction of no examples.
    trainer, swag, tokenizer, _ = run
    features = swag.posterior.features
    for changed, reason in ((None, "ood_features=True"), (features.with_held_out([]), "no distances of held-out examples")):
        posterior = swag.posterior.with_features(changed)
        served = pipeline(
            "swag-text-classification", model=trainer.model, posterior=posterior, tokenizer=tokenizer, device="cpu"
        )
        assert "ood_score" not in served("good film")
        with pytest.raises(SwagError, match=reason):
            served("good film", ood=0.9)


def test_tuning_measures_held_out_distances_and_fits_training_examples(run):
    # Red for: distances of the callback's evaluation examples that stay, class means of the held-out examples.
    trainer, swag, tokenizer, _ = run
    texts = some_texts(40, KNOWN, 11)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    train = some_texts(48, KNOWN, 0)
    train_rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(train)]
    expected = np.sort(swag.posterior.features.distance(features_by_hand(trainer, swag, tokenizer, texts)))
    for posterior, options in ((swag.posterior, {}), (swag.posterior.with_features(None), {"train_data": train_rows})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            tuned = tune(posterior, trainer.model, rows, progress=False, **options)
        np.testing.assert_allclose(tuned.features.held_out, expected, rtol=1e-4)


def test_a_model_without_exclusive_classes_is_refused_before_it_trains(base_folder, tokenizer, tmp_path):
    # Red for: a run whose features fail when it is over, class means of numbers.
    rows = [{**tokenizer("good film"), "labels": [0.5]}] * 4
    for problem, num_labels, reason in (("regression", 1, "a regression"), ("multi_label_classification", 3, "do not exclude")):
        model = lora_model(base_folder, num_labels=num_labels)
        model.get_base_model().config.problem_type = problem
        with pytest.raises(SwagError, match=reason):
            trainer_for(model, rows, tokenizer, tmp_path, callbacks=[SwagCallback(ood_features=True)]).train()


def test_training_examples_without_a_length_are_refused_before_a_run(base_folder, tokenizer, tmp_path):
    # Red for: a run that fails when it is over, class means of whatever a stream gives first.
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([{**tokenizer("good film"), "labels": 0}] * 100)

    with pytest.raises(SwagError, match="training examples with a length"):
        trainer_for(lora_model(base_folder), Stream(), tokenizer, tmp_path, callbacks=[SwagCallback(ood_features=True)]).train()


def test_without_evaluation_examples_the_features_wait_for_held_out_ones(base_folder, texts, tokenizer, tmp_path):
    # Red for: training examples as held-out ones, features that are lost without an evaluation set.
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    swag = SwagCallback(rank=5, ood_features=True)
    trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path / "run", callbacks=[swag]).train()
    assert swag.posterior.features.num_held_out == 0 and len(swag.posterior.features.means) == 3
    assert load_posterior(tmp_path / "run").digest == swag.posterior.digest


def test_a_run_whose_examples_have_one_text_per_class_ends_with_a_warning(base_folder, tokenizer, tmp_path, caplog):
    # Red for: an exception at the end of a training run.
    rows = [{**tokenizer(text), "labels": index} for index, text in enumerate(("good", "bad", "slow"))]
    swag = SwagCallback(rank=5, ood_features=True)
    with caplog.at_level(logging.WARNING):
        trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[swag]).train()
    assert swag.posterior.features is None and "no variance within their classes" in caplog.text
