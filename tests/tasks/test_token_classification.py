"""Token classification: the tokens that count, through predictor, tuning, measurement and the Trainer's evaluation."""

import copy

import numpy as np
import pytest
import torch
from lively import lively
from peft import LoraConfig, get_peft_model
from tagging import TAGS, TEXTS, save_tagger, tagged, tagger, tagging_trainer
from trajectories import random_posterior
from transformers import (
    AutoModelForTokenClassification,
    BertTokenizerFast,
    DataCollatorForTokenClassification,
    GPT2Config,
    Trainer,
    set_seed,
)

from swag_trainer import MonteCarloPredictor, Sampling, SwagCallback, SwagError, SwagEvaluationMixin, tune
from swag_trainer.adapters.weights import private_copy
from swag_trainer.evaluation.measurement import measure
from swag_trainer.evaluation.methods import predict_methods
from swag_trainer.tasks import task_named
from swag_trainer.tasks.token_classification import TokenClassification

TASK = TokenClassification()
GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "num_labels": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    tokenizer, swag = BertTokenizerFast.from_pretrained(save_tagger(folder / "base")), SwagCallback(rank=4)
    rows = tagged(TEXTS * 4, tokenizer)
    tagging_trainer(model := tagger(folder / "base"), rows, tokenizer, folder / "run", callbacks=[swag]).train()
    return model.eval(), lively(swag.posterior), tokenizer, rows


def by_hand(model, posterior, batch, num_draws):
    """Logits of every draw, one forward each, without padding. Shapes (S, T, C), one for each row of the batch."""
    weights, found = private_copy(model, None, posterior.layout.keys), [[] for _ in batch["input_ids"]]
    for draw in posterior.draw(num_draws, seed=0).vectors:
        weights.write(posterior.layout.unflatten(draw))
        for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)):
            with torch.no_grad():
                found[row].append(weights.model(input_ids=ids[mask][None]).logits[0])
    return [torch.stack(logits) for logits in found]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_tokens_that_count_have_the_logits_of_a_plain_loop_whatever_the_padding(run, name):
    # Red for: labels of -100 that count, padding on the left that moves positions, draws and texts mixed up in a packed forward.
    model, posterior, tokenizer, rows = run
    if name == "gpt2":
        set_seed(0)
        base = AutoModelForTokenClassification.from_config(GPT2Config(**GPT2))
        lora = LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
        model = get_peft_model(base, lora)
        posterior = random_posterior(model.eval())
        assert posterior.record.task == TASK.name
        rows = [{key: value for key, value in row.items() if key != "token_type_ids"} for row in rows]
    tokenizer = copy.deepcopy(tokenizer)
    predictor = MonteCarloPredictor(model, posterior, num_samples=3, progress=False)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        for labelled in (True, False):
            batch = DataCollatorForTokenClassification(tokenizer)(rows[:4])
            batch = dict(batch) if labelled else {key: value for key, value in batch.items() if key != "labels"}
            expected = by_hand(model, posterior, batch, 3)
            if labelled:
                kept = [torch.tensor(row["labels"]) != -100 for row in rows[:4]]
                expected = [logits[:, own] for logits, own in zip(expected, kept, strict=True)]
            found = predictor.logits(batch)
            torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=0, atol=1e-4)
            if side == "right" and labelled:
                assert found.shape[1] == sum(map(int, map(sum, kept))) == TASK.num_events(rows[:4]).sum()
                predictor.logits(batch)
                assert predictor._logits.sampler.obstacle is None
    predictor._logits.sampler._give_up("to see the plain path")
    torch.testing.assert_close(predictor.logits(batch), found, rtol=0, atol=1e-4)


def test_a_text_without_tokens_that_count_has_no_events(run):
    # Red for: an index out of range, or a prediction for padding.
    model, posterior, _, rows = run
    silent = [{**row, "labels": [-100] * len(row["labels"])} for row in rows[:2]]
    for options in ({}, {"max_error": 0.1}, {"num_samples": 1}):
        predictor = MonteCarloPredictor(model, posterior, progress=False, **options)
        assert len(predictor.predict(silent)) == 0
        assert len(predictor.predict([*silent, rows[0]])) == TASK.num_events(rows[:1])


@pytest.mark.filterwarnings("ignore:On 24 examples")
def test_tokens_are_tuned_and_measured_and_an_example_is_never_divided(run, monkeypatch):
    # Red for: labels in another order than the events, tokens of one text in two folds, promises for tokens that depend on each other.
    model, posterior, tokenizer, rows = run
    options = {"data_collator": DataCollatorForTokenClassification(tokenizer), "progress": False}
    seen = []
    monkeypatch.setattr(
        "swag_trainer.calibration.tune.cross_fitted",
        lambda candidates, folds: seen.append(folds) or candidates[0].probabilities(np.arange(len(candidates[0].labels)), 1.0),
    )
    tuned = tune(posterior, model, rows, name="me/tags", sampling=Sampling(num_samples=3), **options)
    labels, counts = TASK.labels(rows, len(TAGS)), TASK.num_events(rows)
    assert tuned.tuning.num_examples == len(rows) and len(labels) == counts.sum() == sum(map(len, seen[0]))
    assert tuned.tuning.thresholds == tuned.tuning.conformal == []
    text = np.repeat(np.arange(len(rows)), counts)
    assert all(not set(text[fold]) & set(np.delete(text, fold)) for fold in seen[0])
    with pytest.raises(SwagError, match="Tuning on 19 examples"):
        tune(posterior, model, rows[:19], **options)
    methods = predict_methods(model, tuned, rows, methods=["SWA", "SWAG"], **options)
    measured = measure(methods, labels, clusters=text, num_resamples=5)
    assert measured.num_examples == len(rows)
    nll = -np.log(methods["SWAG"].probabilities[np.arange(len(labels)), labels]).mean()
    assert measured.methods["SWAG"].metrics["nll"].value == pytest.approx(nll)
    assert tuned.tuning.temperature != 1


class PosteriorTrainer(SwagEvaluationMixin, Trainer):
    pass


def test_the_trainer_evaluates_tokens_with_the_posterior(run, tmp_path):
    # Red for: predictions of the events in the place of those of all tokens; a loss over tokens that do not count.
    model, posterior, tokenizer, rows = run
    plain = tagging_trainer(model, rows, tokenizer, tmp_path)
    trainer = PosteriorTrainer(model=model, args=plain.args, data_collator=plain.data_collator, processing_class=tokenizer)
    expected = Trainer(model=model, args=plain.args, data_collator=plain.data_collator).predict(rows[:6])
    trainer.use_posterior(posterior, num_samples=3)
    found = trainer.predict(rows[:6])
    assert found.predictions.shape == expected.predictions.shape and (found.label_ids == expected.label_ids).all()
    averaged = MonteCarloPredictor(model, posterior, num_samples=3, progress=False).predict(rows[:6])
    kept = found.label_ids != -100
    np.testing.assert_allclose(np.exp(found.predictions[kept]), averaged.probabilities, atol=1e-5)
    nll = -found.predictions[kept][np.arange(kept.sum()), found.label_ids[kept]].mean()
    assert found.metrics["test_loss"] == pytest.approx(nll, rel=1e-5)


def test_wrong_labels_and_models_of_other_tasks_are_refused(run, trained):
    # Red for: the label of a text taken for those of its tokens, classes that the model does not have, (B, C) logits indexed by tokens.
    _, _, tokenizer, rows = run
    for labels, message in (
        (3, "has labels=3 for"),
        ([1], r"has labels=\[1\] for"),
        ([9] * len(rows[0]["input_ids"]), "the model has the classes 0 to 4"),
        ([0.5] * len(rows[0]["input_ids"]), "a class number is needed"),
        ([-100] * len(rows[0]["input_ids"]), "No token of 1 texts"),
    ):
        with pytest.raises(SwagError, match=message):
            TASK.labels([{**rows[0], "labels": labels}], len(TAGS))
    classifier, swag = trained
    row = {"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1], "labels": [-100, 1, -100]}
    with pytest.raises(SwagError, match="needs logits of shape"):
        MonteCarloPredictor(classifier.model, swag.posterior, task=task_named(TASK.name)).predict([row])
