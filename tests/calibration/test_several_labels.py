"""Tuning and prediction sets where several labels may be right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import lora_model, trainer_for
from lively import lively
from scipy.special import expit
from transformers import BertTokenizerFast, pipeline

from swag_trainer import MonteCarloPredictor, Sampling, SwagCallback, SwagError, tune
from swag_trainer.calibration.events import CalibrationEvents
from swag_trainer.metrics import calibrate_label_sets

C = 4
FEW = Sampling(num_samples=2)


def test_sets_hold_all_right_labels_of_the_promised_fraction_and_no_smaller_quantile_does():
    # Red for: the likeliest right label in place of the least likely one, a rank that is off by one, an example without labels that
    # raises the quantile.
    generator = np.random.default_rng(0)
    scores = generator.random((400, C))
    flags = (generator.random((400, C)) < scores).astype(int)
    flags[:40] = 0
    sets = calibrate_label_sets(scores[:200], flags[:200], level=0.9)
    covered = np.sort(
        [max([1 - p for p, f in zip(*row, strict=True) if f], default=0) for row in zip(scores, flags, strict=True)][:200]
    )
    assert sets.quantile == covered[int(np.ceil(201 * 0.9)) - 1] and not sets.exclusive
    held = (sets.sets(scores[200:]) | (flags[200:] == 0)).all(axis=1).mean()
    assert 0.85 <= held <= 0.95
    assert calibrate_label_sets(scores[:5], flags[:5], level=0.9).sets(scores).all()  # five are too few to promise it
    for wrong in (flags[:200] * 2, flags[:199], np.zeros(200)):
        with pytest.raises(ValueError, match="A 0 or 1 for each"):
            calibrate_label_sets(scores[:200], wrong, level=0.9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        sets.sets(scores + 1)
    with pytest.raises(ValueError, match='those of "lac"'):
        replace(sets, method="aps")


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    """A model for four labels and a lively posterior, with examples that have from none to four of them."""
    tokenizer, swag = BertTokenizerFast.from_pretrained(base_folder), SwagCallback(rank=4)
    rows = [
        {**tokenizer(text), "labels": [float(index >> place & 1) for place in range(C)]} for index, text in enumerate(texts)
    ]
    trainer = trainer_for(
        lora_model(base_folder, num_labels=C),
        rows,
        tokenizer,
        tmp_path_factory.mktemp("several"),
        callbacks=[swag],
        max_steps=8,
    )
    trainer.train()
    posterior = replace(lively(swag.posterior), record=replace(swag.posterior.record, scale=1.0))
    with pytest.warns(UserWarning):
        tuned = tune(posterior, trainer.model.eval(), rows, sampling=FEW, progress=False, levels=(0.6, 0.9))
    return trainer.model, posterior, tuned, tokenizer, rows


def test_each_label_of_each_example_is_an_event(run):
    # Red for: a softmax over labels that do not exclude each other, folds that divide an example, examples counted label by label.
    model, posterior, tuned, _, rows = run
    tuning, flags = tuned.tuning, np.array([row["labels"] for row in rows])
    assert (tuning.num_examples, tuning.num_calibration, tuning.thresholds, tuned.features) == (24, 24, [], None)
    for candidate in (tuning.candidates[0], next(each for each in tuning.candidates if each.scale == 1 and not each.dropout)):
        settings = {"scale": candidate.scale, "center": candidate.center, "dropout": candidate.dropout}
        predictor = MonteCarloPredictor(model, posterior, FEW, progress=False, **settings)
        logits = torch.stack([predictor.logits({k: torch.tensor([v]) for k, v in row.items()})[:, 0] for row in rows], dim=1)
        mean = expit(logits.double().numpy() / candidate.temperature).mean(0)
        nll = -np.where(flags == 1, np.log(mean), np.log1p(-mean)).mean()
        assert candidate.nll == pytest.approx(nll, abs=1e-5)
    events = CalibrationEvents(flags.astype(int))
    for fold in events.folds(seed=0):
        assert (np.bincount(fold // C, minlength=24) % C == 0).all()  # all labels of an example, or none
    assert np.array_equal(np.sort(np.concatenate(events.folds(seed=0))), np.arange(24 * C))
    assert [(each.method, each.level) for each in tuning.conformal] == [("lac", 0.6), ("lac", 0.9)]


def test_the_pipeline_gives_sets_and_says_why_it_does_not_abstain(run, texts):
    # Red for: a set of the labels' softmax, labels in another order, a threshold of classes that exclude each other applied to labels.
    model, _, tuned, tokenizer, _ = run
    classify = pipeline("swag-text-classification", model=model, posterior=tuned, tokenizer=tokenizer, device="cpu")
    quantile = tuned.tuning.conformal[0].quantile
    for text in texts[:4]:
        found = classify(text, top_k=C, prediction_set=0.6)
        expected = [row["label"] for row in found if 1 - row["score"] <= quantile]
        assert found[0]["prediction_set"] == expected
    for options, message in [
        ({"abstain_below": 0.5}, "judged label by label, so there is none"),
        ({"risk": 0.1}, "no threshold for a risk.*do not exclude each other"),
        ({"prediction_set": 0.6, "prediction_set_method": "aps"}, r"there are: 0.6 \(lac\)"),
        ({"prediction_set": 0.6, "function_to_apply": "softmax"}, "calibrated for the model's own 'sigmoid'"),
        ({"prediction_set": 0.6, "function_to_apply": "none"}, "plain numbers"),
        ({"ood": 0.9}, "OOD score"),
    ]:
        with pytest.raises(SwagError, match=message):
            classify(texts[0], **options)


def test_examples_that_do_not_say_yes_or_no_for_each_label_are_refused(run):
    # Red for: a class number that is taken for the first label, a ValueError of numpy.
    model, posterior, _, _, rows = run
    for wrong in (1, [1.0, 0.0], [0.5] * C, "good"):
        with pytest.raises(SwagError, match="Row 0 has labels=.*each of the model's 4 labels"):
            tune(posterior, model, [{**row, "labels": wrong} for row in rows], progress=False)
    with pytest.raises(SwagError, match="OOD score"):
        tune(posterior, model, rows, train_data=rows, progress=False)
