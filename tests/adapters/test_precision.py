"""Trained weights below float32: found, named, and held in float32 on a base that stays as it is."""

import copy

import pytest
import torch
from adapter_kinds import ADAPTERS
from peft import LoraConfig, PeftModel, get_peft_model
from quantised_bases import load_base, low_model
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import DistilBertConfig, DistilBertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from swag_trainer.adapters.precision import low_precision, low_precision_warning, upcast_to_float32
from swag_trainer.adapters.weights import AdapterWeights, private_copy

LOW = [torch.bfloat16, torch.float16]
HEAD = ["base_model.model.classifier.bias", "base_model.model.classifier.weight"]


def trained_weights(model):
    weights = AdapterWeights(model)
    return dict(zip(weights.layout.keys, weights.parameters(), strict=True))


def held(model):
    assert upcast_to_float32(model, trained_weights(model)) == []
    return model


def some_draw(weights, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: 0.1 * torch.randn(shape, generator=generator)
        for key, shape in zip(weights.layout.keys, weights.layout.shapes, strict=True)
    }


@pytest.fixture
def batch(tokenizer, texts):
    return tokenizer(texts[:6], padding=True, return_tensors="pt")


def answers(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("dtype", LOW)
def test_only_the_head_is_low_where_peft_casts_its_own_matrices(base_folder, dtype):
    # Red for: a rule by names, or one that also lists what is float32 or never trains.
    assert low_precision(trained_weights(low_model(base_folder, dtype))) == HEAD
    assert len(low_precision(trained_weights(low_model(base_folder, dtype, autocast=False)))) == 10
    assert low_precision(trained_weights(low_model(base_folder, torch.float32))) == []


def test_the_parameters_stay_the_objects_that_an_optimizer_holds(base_folder, batch):
    # Red for: new parameters in the place of the old ones, which the optimizer would never touch, or a gradient left low.
    model = low_model(base_folder)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    model(**batch, labels=torch.arange(6) % 3).loss.backward()
    before = trained_weights(model)
    values = {key: parameter.detach().clone() for key, parameter in before.items()}
    held(model)
    assert {key: id(parameter) for key, parameter in trained_weights(model).items()} == {k: id(p) for k, p in before.items()}
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in before.values())
    assert all(torch.equal(before[key], value.float()) for key, value in values.items())
    optimizer.step()
    assert not torch.equal(before[HEAD[1]], values[HEAD[1]].float())
    # The base stays as it was.
    assert model.get_base_model().bert.pooler.dense.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", LOW)
def test_the_head_computes_in_float32_on_what_the_base_hands_it(base_folder, batch, dtype):
    # Red for: logits rounded to the base's precision, or a base that computes otherwise than before.
    model = held(low_model(base_folder, dtype).eval())
    head = model.get_base_model().classifier.modules_to_save["default"]
    with torch.no_grad():
        pooled = model.get_base_model().bert(**batch)[1]
    assert pooled.dtype == dtype
    assert torch.equal(answers(model, batch), functional.linear(pooled.float(), head.weight, head.bias))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "bias"])
def test_layers_of_any_adapter_answer_as_if_peft_had_cast_them(base_folder, batch, name, dtype):
    # Red for: a hook on LoRA, which casts by itself, or the frozen projections of VeRA left low beside its float32 vectors.
    by_peft = held(get_peft_model(load_base(base_folder, dtype), copy.deepcopy(ADAPTERS[name])).eval())
    by_us = held(
        get_peft_model(load_base(base_folder, dtype), copy.deepcopy(ADAPTERS[name]), autocast_adapter_dtype=False).eval()
    )
    for model in (by_peft, by_us):
        weights = AdapterWeights(model)
        weights.write(some_draw(weights))
    assert torch.equal(answers(by_peft, batch), answers(by_us, batch))


def roberta(dtype, **config):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    base = RobertaForSequenceClassification(RobertaConfig(vocab_size=64, num_labels=3, **sizes)).to(dtype)
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], **config))


def distilbert(dtype, **config):
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    base = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=64, num_labels=3, **sizes)).to(dtype)
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_lin"], **config))


SAVED = {
    "a head of several layers": (roberta, {}),
    "two layers one after the other": (distilbert, {"modules_to_save": ["pre_classifier", "classifier"]}),
    "an embedding": (roberta, {"modules_to_save": ["word_embeddings"]}),
    "norms inside the base": (roberta, {"modules_to_save": ["LayerNorm"]}),
}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", SAVED)
def test_any_saved_module_takes_and_hands_on_what_the_base_works_with(name, dtype):
    # Red for: a float32 embedding or norm handed on to layers that multiply in bfloat16, or a hook for Linear only.
    make, config = SAVED[name]
    torch.manual_seed(0)
    model = held(make(dtype, **config).eval())
    logits = model(input_ids=torch.arange(5, 13)[None]).logits
    logits.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in trained_weights(model).values())
    assert logits.dtype == torch.float32
    # The slow way: everything in float32. What differs is the rounding of the base's activations.
    exact = copy.deepcopy(model).float()(input_ids=torch.arange(5, 13)[None]).logits
    torch.testing.assert_close(logits, exact, rtol=0, atol=0.02)


def test_a_batch_norm_in_the_head_keeps_its_statistics_in_float32_too():
    # Red for: running statistics left in bfloat16 beside float32 weights, which no kernel accepts.
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))

        def forward(self, x):
            return self.head(self.body(x))

    model = get_peft_model(Net().to(torch.bfloat16), LoraConfig(r=2, target_modules=["body"], modules_to_save=["head"]))
    x = torch.randn(8, 4, dtype=torch.bfloat16)
    assert held(model)(x).dtype == torch.float32
    assert model.eval()(x).dtype == torch.float32


def count_hooks(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_doing_it_twice_adds_nothing(base_folder):
    # Red for: a second hook of each kind.
    model = held(low_model(base_folder, modules_to_save=["word_embeddings"]))
    once = count_hooks(model)
    head = model.get_base_model().classifier.modules_to_save["default"]
    head.to(torch.bfloat16)
    held(model)
    assert once == count_hooks(model) == 3


def test_copies_compiled_models_and_later_casts_keep_working(base_folder, batch):
    # Red for: a hook bound to the module that was copied, one that dynamo cannot trace, or one that remembers float32.
    model = held(low_model(base_folder, modules_to_save=["word_embeddings"]).eval())
    expected = answers(model, batch)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_base_model().classifier.modules_to_save["default"].bias += 1.0
    assert torch.equal(answers(twin, batch), expected + 1.0)
    assert torch.equal(answers(model, batch), expected)
    for wrapper, inputs in (
        (model.get_base_model().classifier, torch.randn(2, 32, dtype=torch.bfloat16)),
        (model.get_base_model().bert.embeddings.word_embeddings, torch.arange(4)[None]),
    ):
        torch.compiler.reset()
        assert torch.equal(torch.compile(wrapper, backend="eager", fullgraph=True)(inputs), wrapper(inputs))
    assert answers(model.to(torch.bfloat16), batch).dtype == torch.bfloat16
    torch.testing.assert_close(answers(model.float(), batch), expected, rtol=0, atol=0.02)


def test_without_the_adapter_the_base_answers_as_it_always_did(base_folder, batch):
    # Red for: a hook that also meets the original module, whose weights are bfloat16.
    model = low_model(base_folder, modules_to_save=["word_embeddings"]).eval()
    with model.disable_adapter():
        expected = answers(model, batch)
    with held(model).disable_adapter():
        assert torch.equal(answers(model, batch), expected)


def test_what_is_saved_is_float32_and_loads_onto_a_low_base_again(base_folder, batch, tmp_path):
    # Red for: a file with the rounded head, or hooks that need a file of their own.
    model = held(low_model(base_folder).eval())
    weights = AdapterWeights(model)
    weights.write(some_draw(weights))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(stored[key], weight) for key, weight in weights.read().items())
    loaded = PeftModel.from_pretrained(load_base(base_folder), tmp_path, is_trainable=True).eval()
    assert low_precision(trained_weights(loaded)) == HEAD
    held(loaded)
    loaded.load_adapter(tmp_path, "default", is_trainable=True)  # what the Trainer does at a resume
    assert low_precision(trained_weights(loaded)) == []
    assert torch.equal(answers(loaded, batch), answers(model, batch))


def test_biases_of_a_frozen_layer_stay_low_and_are_named(base_folder, batch):
    # Red for: a float32 bias added to a bfloat16 product, which torch refuses, or a silent rest.
    model = low_model(base_folder, bias="lora_only").eval()
    parameters = trained_weights(model)
    stay = upcast_to_float32(model, parameters)
    assert len(stay) == 4 and all(key.endswith("base_layer.bias") for key in stay)
    assert low_precision(parameters) == stay
    assert torch.isfinite(answers(model, batch)).all()


def test_a_sharded_weight_is_left_alone_and_named(base_folder):
    # Red for: an assignment to .data, which turns a DTensor's label to float32 and leaves its piece in bfloat16.
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        model = low_model(base_folder)
        head = model.get_base_model().classifier.modules_to_save["default"]
        head.weight = nn.Parameter(distribute_tensor(head.weight.detach(), init_device_mesh("cpu", (1,))))
        parameters = {"weight": head.weight, "bias": head.bias}
        assert upcast_to_float32(model, parameters) == ["weight", "bias"]
        assert head.weight.to_local().dtype == head.bias.dtype == torch.bfloat16
    finally:
        destroy_process_group()


def test_a_private_copy_takes_draws_unrounded_and_leaves_the_users_head_as_it_is(base_folder, batch):
    # Red for: draws rounded to bfloat16, or the user's own tensors cast.
    model = low_model(base_folder).eval()
    before = {name: (id(p), p.dtype, p.detach().clone()) for name, p in model.named_parameters()}
    weights = private_copy(model, None, AdapterWeights(model).layout.keys)
    draw = some_draw(weights)
    weights.write(draw)
    assert all(torch.equal(weight, draw[key]) for key, weight in weights.read().items())
    for name, parameter in model.named_parameters():
        identity, dtype, value = before[name]
        assert (id(parameter), parameter.dtype) == (identity, dtype) and torch.equal(parameter, value)
    assert count_hooks(model) == 0


def test_a_private_copy_of_a_part_of_the_head_casts_no_tensor_that_it_shares(base_folder, batch):
    # Red for: the bias, which is shared because it is not collected, cast in place in the user's model.
    model = low_model(base_folder).eval()
    plain = answers(model, batch)
    copied = private_copy(model, None, HEAD[1:])
    copied_answers = answers(copied.model, batch)
    assert model.get_base_model().classifier.modules_to_save["default"].bias.dtype == torch.bfloat16
    assert torch.equal(answers(model, batch), plain)
    assert torch.equal(copied_answers.to(torch.bfloat16), plain)


@pytest.mark.parametrize("dtype", LOW)
def test_at_the_users_own_weights_a_private_copy_answers_within_the_rounding_of_the_logits(base_folder, batch, dtype):
    # Red for: a copy whose base computes in another precision than the user's.
    model = low_model(base_folder, dtype).eval()
    weights = AdapterWeights(model)
    copied = private_copy(model, None, weights.layout.keys)
    copied.write(weights.read())
    plain, copied_answers = answers(model, batch), answers(copied.model, batch)
    assert copied_answers.dtype == torch.float32
    # The user's logits are these, rounded once: half a unit in the last place, and as much for the sums of the low product.
    assert torch.all((copied_answers - plain.float()).abs() <= torch.finfo(dtype).eps * copied_answers.abs().clamp(min=0.05))


def test_the_warning_says_how_many_which_what_it_costs_and_what_to_do(base_folder):
    # Red for: a warning without a remedy, or one that counts the weights that are float32.
    text = low_precision_warning(trained_weights(low_model(base_folder)))
    assert text.startswith("2 of 10 trained weights are stored in bfloat16")
    assert "'base_model.model.classifier.bias'" in text
    assert 'low_precision="upcast"' in text
    assert low_precision_warning(trained_weights(low_model(base_folder, torch.float32))) is None
    with_biases = low_model(base_folder, bias="lora_only")
    parameters = trained_weights(with_biases)
    stay = upcast_to_float32(with_biases, parameters)
    assert low_precision_warning(parameters, stay=stay).startswith("4 of 14 trained weights are stored in bfloat16 and cannot")
