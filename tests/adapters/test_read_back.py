"""Adapters are read back as another process would read them, before the first step and before they are saved."""

import pytest
import torch
from adapter_kinds import ADAPTERS, model_with
from conftest import lora_model, trainer_for
from peft import PolyConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, TrainerCallback

from swag_trainer import AdapterMismatchError, SwagCallback, SwagError, SwagPosterior
from swag_trainer.adapters.read_back import check_loadable
from swag_trainer.adapters.weights import AdapterWeights


class ForgetsAModule(TrainerCallback):
    """From a step on, the settings of the adapter are no longer those of its weights."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, *, model, **kwargs):
        if state.global_step == self.step:
            model.peft_config["default"].target_modules = {"query"}


@pytest.mark.parametrize("name", ADAPTERS)
def test_reading_back_leaves_the_model_and_the_random_state_as_they_are(base_folder, name):
    # Red for: base weights or biases that are written to, requires_grad switched off, random numbers drawn from the run's own.
    model = model_with(base_folder, name).train()
    weights = AdapterWeights(model)
    before = {
        key: (weight, weight.detach().clone(), weight.requires_grad, weight._version)
        for key, weight in model.named_parameters()
    }
    state, modules = torch.get_rng_state(), dict(model.named_modules())
    check_loadable(weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module is modules[key] for key, module in model.named_modules()) and model.training
    for key, weight in model.named_parameters():
        same, value, requires_grad, version = before[key]
        assert weight is same and torch.equal(weight, value)
        assert (weight.requires_grad, weight._version) == (requires_grad, version)


def test_biases_of_the_base_that_train_are_not_written_to(base_folder):
    # Red for: trained weights shared with the copy, which an adapter of other values is loaded into.
    model = lora_model(base_folder, bias="all")
    weights = AdapterWeights(model)
    saved = weights.saved()
    other = saved.with_weights({key: tensor + 1 for key, tensor in saved.tensors.items()})
    expected = {key: weight.clone() for key, weight in weights.read().items()}
    check_loadable(weights, other)
    assert all(torch.equal(weight, expected[key]) for key, weight in weights.read().items())
    assert all(weight.requires_grad for weight in weights.parameters())


def test_an_adapter_that_cannot_be_loaded_is_refused_before_the_first_step(base_folder, rows, tokenizer, tmp_path):
    # Red for: a run that ends well, and a folder that no process can load.
    model = lora_model(base_folder)
    model.peft_config["default"].target_modules = {"query"}  # its layers are of query and value
    trainer = trainer_for(model, rows, tokenizer, tmp_path, callbacks=[SwagCallback()])
    with pytest.raises(AdapterMismatchError, match=r"no other process can load.*'base_model.*value"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_what_fails_at_the_end_leaves_the_old_files(base_folder, rows, tokenizer, tmp_path):
    # Red for: the files of an earlier run replaced by some that cannot be loaded, or an error that takes the posterior along.
    earlier = SwagCallback()
    trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[earlier]).train()
    swag = SwagCallback()
    callbacks = [swag, ForgetsAModule(20)]
    with pytest.raises(AdapterMismatchError, match="no other process can load"):
        trainer_for(lora_model(base_folder, seed=1), rows, tokenizer, tmp_path, callbacks=callbacks).train()
    assert SwagPosterior.from_pretrained(tmp_path).adapter.digest == earlier.posterior.adapter.digest
    assert swag.posterior.num_collected > 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3), "kind PROMPT_TUNING is prompt learning"),
        (PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3), "kind PREFIX_TUNING is prompt learning"),
        (PolyConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]), "kind POLY needs the number of a task"),
    ],
)
def test_a_kind_that_is_not_supported_is_refused_with_the_reason(base_folder, config, words):
    # Red for: advice to name a module in modules_to_save, which no setting of prompt learning follows.
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=2)
    with pytest.raises(SwagError, match=words):
        AdapterWeights(get_peft_model(base, config))
