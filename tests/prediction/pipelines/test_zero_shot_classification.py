"""The pipeline "swag-zero-shot-classification" against transformers' own on the mean, and against a plain loop over draws."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import lora_model, trainer_for
from datasets import Dataset
from lively import lively, tuning_of
from transformers import BertTokenizerFast, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from swag_trainer import SwagCallback, SwagError
from swag_trainer.adapters.weights import private_copy
from swag_trainer.posterior.tuning import Tuning

TASK = "swag-zero-shot-classification"
NLI = ["contradiction", "neutral", "Entailment"]
LABELS = ["good", "slow and dull", "funny"]


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    """A run on pairs of texts: the model and a lively posterior."""
    tokenizer, swag = BertTokenizerFast.from_pretrained(base_folder), SwagCallback(rank=4)
    model = lora_model(base_folder)
    config = model.get_base_model().config
    config.id2label, config.label2id = dict(enumerate(NLI)), {name: index for index, name in enumerate(NLI)}
    rows = [{**tokenizer(text, texts[0]), "labels": index % 3} for index, text in enumerate(texts)]
    trainer = trainer_for(model, rows, tokenizer, tmp_path_factory.mktemp("nli"), callbacks=[swag], max_steps=8)
    trainer.train()
    posterior = lively(swag.posterior)
    posterior.save_pretrained(trainer.args.output_dir)
    return SimpleNamespace(model=trainer.model.eval(), posterior=posterior, tokenizer=tokenizer, folder=trainer.args.output_dir)


@pytest.fixture(scope="module")
def classify(run):
    return pipeline(TASK, model=run.folder, device="cpu")


def at(run, vector):
    """The model under the given weights, as transformers' own pipeline."""
    weights = private_copy(run.model, None, run.posterior.layout.keys)
    weights.write(run.posterior.layout.unflatten(vector))
    return pipeline("zero-shot-classification", model=weights.model, tokenizer=run.tokenizer, device="cpu")


def test_at_the_mean_it_is_the_pipeline_of_transformers(run, classify, texts):
    # Red for: labels as one text, a template, the class of entailment by its place, one label, several right ones, the order, the forms
    # of lists, data sets and second arguments.
    plain = at(run, classify.posterior.mean_vector())
    for inputs, labels, arguments in [
        (texts[0], LABELS, {}),
        (texts[0], "good, slow and dull,funny", {"hypothesis_template": "the film was {} and long"}),
        (texts[:3], LABELS, {"multi_label": True}),
        (texts[:3], LABELS, {"batch_size": 2}),
        ([texts[0]], ["funny"], {}),
        (KeyDataset(Dataset.from_dict({"text": texts[:3]}), "text"), LABELS, {}),
        ("good " * 200, LABELS, {}),
    ]:
        theirs = plain(inputs, labels, **arguments)
        ours = classify(inputs, labels, scale=0, num_samples=1, **arguments)
        theirs, ours = ([each] if isinstance(each, dict) else list(each) for each in (theirs, ours))
        assert len(ours) == len(theirs)
        for mine, plain_one in zip(ours, theirs, strict=True):
            assert (mine["sequence"], mine["labels"]) == (plain_one["sequence"], plain_one["labels"])
            np.testing.assert_allclose(mine["scores"], plain_one["scores"], atol=1e-5)
    assert classify.num_truncated == 1 and classify([], LABELS) == []


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_distribution_over_the_labels_is_made_for_each_draw_and_then_averaged(run, classify, texts, multi_label):
    # Red for: logits that are averaged before the softmax over the labels, draws mixed up between the pairs of a text, a temperature of
    # the tuning for other classes.
    draws = classify.posterior.draw(3, seed=0).vectors
    each = [at(run, draw)(texts[0], LABELS, multi_label=multi_label) for draw in draws]
    scores = np.array([[one["scores"][one["labels"].index(label)] for label in LABELS] for one in each])
    found = classify(texts[0], LABELS, multi_label=multi_label, num_samples=3)
    places = [LABELS.index(label) for label in found["labels"]]
    np.testing.assert_allclose(found["scores"], scores.mean(0)[places], atol=1e-5)
    assert found["scores"] == sorted(found["scores"], reverse=True)
    if multi_label:
        entropies = -(scores * np.log(scores) + (1 - scores) * np.log1p(-scores))
        mean = scores.mean(0)
        total = -(mean * np.log(mean) + (1 - mean) * np.log1p(-mean))
        np.testing.assert_allclose(found["mutual_information"], (total - entropies.mean(0))[places], atol=1e-5)
    else:
        mean = scores.mean(0)
        expected = -(mean * np.log(mean)).sum() + (scores * np.log(scores)).sum(1).mean()
        assert found["mutual_information"] == pytest.approx(expected, abs=1e-5)
    assert np.max(found["mutual_information"]) > 1e-3
    sampler = classify._predictor._logits.sampler
    assert sampler.obstacle is None  # packed
    sampler._give_up("to see the plain path")
    again = classify(texts[0], LABELS, multi_label=multi_label, num_samples=3)
    np.testing.assert_allclose(again["scores"], found["scores"], atol=1e-4)
    classify._predictor = None
    record = replace(run.posterior.record, scale=1.0, tuning=tuning_of())
    tuned = pipeline(
        TASK, model=run.model, posterior=replace(run.posterior, record=record), tokenizer=run.tokenizer, device="cpu"
    )
    arguments = {"multi_label": multi_label, "num_samples": 3, "seed": 0}
    np.testing.assert_allclose(tuned(texts[0], LABELS, **arguments)["scores"], found["scores"], atol=0.02)
    assert (
        isinstance(record.tuning, Tuning) and tuned(texts[0], LABELS, temperature=8.0, **arguments)["scores"] != found["scores"]
    )


def test_what_cannot_be_done_is_refused_before_a_text_is_read(run, classify, texts):
    # Red for: thresholds of the classes of NLI held against the labels of a call, a last class that is taken for entailment, an
    # IndexError without labels, arguments that are taken and not used.
    for arguments, message in [
        ({"candidate_labels": LABELS, "risk": 0.1}, "each call brings its own labels"),
        ({"candidate_labels": LABELS, "abstain_below": 0.5}, "each call brings its own labels"),
        ({"candidate_labels": LABELS, "method": "linearized"}, "method='monte_carlo'"),
        ({"candidate_labels": LABELS, "max_error": 0.01}, "no max_error"),
        ({"candidate_labels": LABELS, "hypothesis_template": "no place"}, "in the place of the label"),
        ({"candidate_labels": LABELS, "hypothesis_template": "is {label}"}, "in the place of the label"),
        ({"candidate_labels": LABELS, "hypothesis_template": "is {} {"}, "in the place of the label"),
        ({"candidate_labels": [1, 2]}, "candidate_labels are texts"),
        ({"candidate_labels": ""}, "candidate_labels are texts"),
        ({"candidate_labels": LABELS, "padding": True}, "no argument 'padding' of the tokenizer"),
        ({"candidate_label": LABELS}, "Did you mean 'candidate_labels'"),
    ]:
        with pytest.raises(SwagError, match=message):
            classify([], **arguments)
    with pytest.raises(SwagError, match="needs the labels to choose from"):
        classify(texts[0])
    arguments = {"posterior": run.posterior, "tokenizer": run.tokenizer, "device": "cpu"}
    config = run.model.get_base_model().config
    config.label2id = {"yes": 0, "no": 1, "maybe": 2}
    try:
        with pytest.raises(SwagError, match="begins with 'entail'.*'yes'"):
            pipeline(TASK, model=run.model, **arguments)
    finally:
        config.label2id = {name: index for index, name in enumerate(NLI)}
    assert torch.is_grad_enabled()
