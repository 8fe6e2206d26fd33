"""The base that a predictor shares with the user's model: what is done to the model after the first call."""

import copy
import pickle
import re

import pytest
import torch
from conftest import lora_model, trainer_for
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, pipeline

from swag_trainer import MonteCarloPredictor, SwagCallback, SwagError
from swag_trainer.adapters.keys import active_adapter


@pytest.fixture
def classify(trained):
    trainer, swag = trained
    swag.posterior.with_scale(20.0).save_pretrained(trainer.args.output_dir)
    return pipeline("swag-text-classification", model=trainer.args.output_dir, seed=0, device="cpu")


@pytest.mark.parametrize("change", ["merge_adapter", "merge_and_unload"])
def test_an_adapter_merged_after_the_first_call_is_noticed(classify, texts, change):
    # Red for: draws on top of the merged adapter, whose predictions differ without a word.
    before = classify(texts[:2])
    getattr(classify.model, change)()
    with pytest.raises(SwagError, match="merged into the base .* after its predictor was made"):
        classify(texts[:2])
    if change == "merge_adapter":
        classify.model.unmerge_adapter()
        for one, other in zip(classify(texts[:2]), before, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_base_weight_written_to_after_the_first_call_is_noticed(classify, texts):
    # Red for: a posterior's draws over another base.
    classify(texts[:1])
    name, weight = next((name, p) for name, p in classify.model.named_parameters() if name.endswith("base_layer.weight"))
    with torch.no_grad():
        weight.mul_(1.5)
    with pytest.raises(SwagError, match=re.escape(repr(name)) + " was written to"):
        classify(texts[:1])


@pytest.mark.parametrize("change", ["unload", "disable", "delete", "another", "train"])
def test_what_does_not_reach_the_base_changes_no_prediction(classify, texts, change):
    # Red for: a refusal of what changes nothing, or predictions of another adapter.
    before, model = classify(texts[:2]), classify.model
    if change == "unload":
        model.unload()
    elif change == "disable":
        model.base_model.disable_adapter_layers()
    elif change == "delete":
        model.delete_adapter("default")
    elif change == "another":
        model.add_adapter("other", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
        model.set_adapter("other")
    else:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(1.0)
    assert classify(texts[:2]) == before


def test_a_native_adapter_is_read_without_transformers_opinion_of_the_version_of_peft(base_folder, monkeypatch):
    # Red for: model.active_adapters(), a bare ValueError with transformers 5.24 and PEFT 0.21.
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]), adapter_name="mine")
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0")
    with pytest.raises(ValueError):
        model.active_adapters()
    assert active_adapter(model) == "mine"


def test_pipelines_and_predictors_can_be_sent_to_other_processes(classify, trained, texts, tokenizer):
    # Red for: "cannot pickle '_thread.lock' object", or other draws on the other side.
    before = classify(texts[:2], num_samples=3)
    for copied in (pickle.loads(pickle.dumps(classify)), copy.deepcopy(classify)):
        assert copied(texts[:2], num_samples=3) == before
    trainer, swag = trained
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    predictor = MonteCarloPredictor(trainer.model, swag.posterior, num_samples=3, temperature=1.7)
    for made in (predictor, predictor.with_output(link="sigmoid")):
        for copied in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
            assert (copied.predict(batch).probabilities == made.predict(batch).probabilities).all()


def test_a_predictor_serves_while_its_model_trains(base_folder, rows, texts, tokenizer, tmp_path, trained):
    # Red for: weights that train taken for a base that was written to.
    model, (_, swag) = lora_model(base_folder), trained
    predictor = MonteCarloPredictor(model, swag.posterior, num_samples=3)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    before = predictor.predict(batch).probabilities
    trainer_for(model, rows, tokenizer, tmp_path, callbacks=[SwagCallback()], max_steps=4).train()
    assert (predictor.predict(batch).probabilities == before).all()
