import pytest
import torch
from adapter_kinds import ADAPTERS, model_with
from conftest import lora_model
from peft import LoraConfig
from safetensors.torch import load_file

from swag_trainer import AdapterMismatchError, SwagError
from swag_trainer.adapters.weights import AdapterWeights, private_copy


def batch(tokenizer, texts):
    return tokenizer(texts[:6], padding=True, return_tensors="pt")


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_trained_weight_of_any_adapter_is_read_under_its_name_in_the_file(base_folder, tmp_path, name):
    # Red for: a rule about spellings that holds for LoRA only, or a head, a bias or a token that is left out.
    model = model_with(base_folder, name)
    weights = AdapterWeights(model)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert weights.layout.size == trained
    for key, tensor in weights.read().items():
        assert torch.equal(tensor, stored[key]), key


@pytest.mark.parametrize("name", ADAPTERS)
def test_weights_in_a_private_copy_answer_as_if_they_had_been_trained(base_folder, tokenizer, texts, name):
    # Red for: a copy that shares an adapter's tensor, or one whose answers ignore what is written into it.
    model, twin = model_with(base_folder, name), model_with(base_folder, name)
    generator = torch.Generator().manual_seed(1)
    moved = {
        key: weight + 0.3 * torch.randn(weight.shape, generator=generator)
        for key, weight in AdapterWeights(model).read().items()
    }
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    inputs = batch(tokenizer, texts)
    with torch.no_grad():
        plain = model(**inputs).logits
        copy = private_copy(model, None, moved)
        copy.write(moved)
        answers = copy.model(**inputs).logits
        AdapterWeights(twin).write(moved)
        assert torch.equal(answers, twin(**inputs).logits)
        assert torch.equal(model(**inputs).logits, plain)
    assert not torch.allclose(answers, plain)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_private_copy_shares_every_tensor_that_is_not_collected(base_folder):
    # Red for: a deep copy of the base model.
    model = lora_model(base_folder).train()
    weights = AdapterWeights(model)
    copy = private_copy(model, None, weights.layout.keys)
    own = {parameter.data_ptr() for parameter in copy.parameters()}
    theirs = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    others = {tensor.data_ptr() for tensor in [*copy.model.parameters(), *copy.model.buffers()]} - own
    assert others <= theirs
    assert not own & theirs
    # The user's model stays in training mode, its weights still want gradients.
    assert model.training and not copy.model.training
    assert sum(parameter.requires_grad for parameter in model.parameters()) == len(weights.layout.keys)


@pytest.mark.parametrize("name", ["lora", "vera", "tokens"])
def test_what_is_saved_from_memory_is_what_peft_writes(base_folder, tmp_path, name):
    # Red for: an adapter file of our own making, without the tensors that do not train, say.
    model = model_with(base_folder, name)
    saved = AdapterWeights(model).saved()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert set(saved.tensors) == set(stored)
    assert all(torch.equal(saved.tensors[key], tensor) for key, tensor in stored.items())


def test_of_several_adapters_the_active_one_is_meant_or_the_one_named(base_folder):
    # Red for: weights of both adapters, or always those of "default".
    model = lora_model(base_folder)
    model.add_adapter("second", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    assert AdapterWeights(model).adapter_name == "default"
    assert AdapterWeights(model).layout.size == AdapterWeights(lora_model(base_folder)).layout.size
    model.set_adapter("second")
    second = AdapterWeights(model)
    assert second.adapter_name == "second"
    assert {tuple(shape) for key, shape in zip(second.layout.keys, second.layout.shapes, strict=True) if "lora_A" in key} == {
        (2, 32)
    }
    assert set(second.saved().tensors) == set(second.layout.keys)
    with pytest.raises(SwagError, match=r"'default' is not the active one"):
        private_copy(model, "default", AdapterWeights(model, "default", keys=second.layout.keys).layout.keys)
    with pytest.raises(SwagError, match=r"no adapter 'third'"):
        AdapterWeights(model, "third")


def test_a_merged_or_switched_off_adapter_is_refused(base_folder):
    # Red for: draws that change nothing, so that S equal answers look like certainty.
    model = lora_model(base_folder)
    keys = AdapterWeights(model).layout.keys
    model.merge_adapter()
    with pytest.raises(SwagError, match="merged into the base"):
        private_copy(model, None, keys)
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(SwagError, match="switched off"):
        private_copy(model, None, keys)


def test_a_weight_that_the_adapter_lacks_is_named(base_folder):
    # Red for: predicting with the weights that happen to be there.
    with pytest.raises(AdapterMismatchError, match=r"has 1 weights, the adapter 'default' of the model 10.*'nowhere\.weight'"):
        AdapterWeights(lora_model(base_folder), keys=["nowhere.weight"])


def test_wrappers_are_looked_through(base_folder):
    # Red for: a wrapped model refused, or its prefix in the keys.
    model = lora_model(base_folder)
    wrapped = torch.nn.DataParallel(torch.compile(model))
    assert AdapterWeights(wrapped).layout == AdapterWeights(model).layout


def test_tensors_and_dtypes_of_the_model_stay_when_weights_are_written(base_folder):
    # Red for: parameters replaced instead of filled, or a bfloat16 head turned into float32.
    model = lora_model(base_folder)
    model.get_base_model().classifier.to(torch.bfloat16)
    weights = AdapterWeights(model)
    places = [parameter.data_ptr() for parameter in weights.parameters()]
    weights.write(
        {key: torch.full(shape, 1 / 3) for key, shape in zip(weights.layout.keys, weights.layout.shapes, strict=True)}
    )
    assert [parameter.data_ptr() for parameter in weights.parameters()] == places
    head = weights.read()["base_model.model.classifier.weight"]
    assert head.dtype == torch.bfloat16
    assert torch.equal(head, torch.full_like(head, 1 / 3))
