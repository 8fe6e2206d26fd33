"""A private copy of a quantised model shares the base, scales included, and its forwards change nothing in the user's model."""

import pytest
import torch
from quantised_bases import BITSANDBYTES, QUANTISED, load_base, low_model, write_wide_base

from swag_trainer.adapters.weights import AdapterWeights, private_copy
from swag_trainer.collection.base_loading import find_unsaved_modules


@pytest.fixture
def wide_base(tmp_path, tokenizer):
    return write_wide_base(tmp_path / "wide", tokenizer)


@pytest.fixture
def batch(tokenizer, texts):
    return tokenizer(texts[:4], padding=True, return_tensors="pt")


def answers(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def tensors_of(value, path="", depth=0):
    """Every tensor that a module, a parameter or one of their scale objects holds, by its path."""
    if isinstance(value, torch.Tensor):
        inner = [name for name in getattr(value, "tensor_data_names", []) if getattr(value, name, None) is not None]
        if not inner:
            yield path, value
        for name in inner:
            yield from tensors_of(getattr(value, name), f"{path}.{name}", depth)
    if depth < 4 and hasattr(value, "__dict__") and not isinstance(value, type):
        for name, member in vars(value).items():
            if isinstance(member, torch.Tensor) or type(member).__module__.startswith("bitsandbytes"):
                if not isinstance(member, torch.nn.Module):
                    yield from tensors_of(member, f"{path}.{name}", depth + 1)


def everything(model):
    found = {}
    for module_name, module in model.named_modules():
        for tensor_name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found.update(tensors_of(tensor, f"{module_name}.{tensor_name}"))
        found.update(tensors_of(module, module_name))
    return found


def state_of(model):
    """What must not change: place, dtype and bits of every tensor, and the mode of every module."""
    tensors = {path: (tensor.data_ptr(), tensor.dtype, tensor.detach().clone()) for path, tensor in everything(model).items()}
    return tensors, [module.training for module in model.modules()]


def assert_untouched(model, before):
    tensors, modes = state_of(model)
    assert modes == before[1]
    assert tensors.keys() == before[0].keys()
    for path, (place, dtype, value) in tensors.items():
        expected_place, expected_dtype, expected = before[0][path]
        assert (place, dtype) == (expected_place, expected_dtype), path
        assert torch.equal(value, expected), path


def used(model, batch, how):
    if how == "trained":
        model.train()
        model(**batch, labels=torch.arange(4) % 3).loss.backward()
        model.zero_grad()
    elif how == "evaluated":
        answers(model.eval(), batch)
    return model


@pytest.mark.parametrize("quantisation", QUANTISED)
def test_the_copy_shares_the_quantised_base_and_its_scales(wide_base, quantisation):
    # Red for: a deep copy of the weights, which bitsandbytes makes whatever the memo says, or of quant_state, CB and SCB.
    model = low_model(wide_base, quantisation=quantisation)
    weights = AdapterWeights(model)
    copied = private_copy(model, None, weights.layout.keys)
    own = {parameter.data_ptr() for parameter in copied.parameters()}
    theirs = {tensor.data_ptr() for tensor in everything(model).values()}
    shared = {path: tensor for path, tensor in everything(copied.model).items() if tensor.data_ptr() not in own}
    assert [path for path, tensor in shared.items() if tensor.data_ptr() not in theirs] == []
    quantised = [path for path in shared if "query.base_layer" in path]
    assert len(quantised) >= 2 * 3, quantised  # of each of two layers weight, bias and scales


@pytest.mark.parametrize("before_it", ["fresh", "trained", "evaluated"])
@pytest.mark.parametrize(("dtype", "prepared"), [(torch.bfloat16, False), (torch.float16, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("quantisation", QUANTISED)
def test_predicting_with_the_copy_leaves_the_users_model_as_it_was(wide_base, batch, quantisation, dtype, prepared, before_it):
    # Red for: 8-bit weights moved out of the user's parameters, 4-bit ones repacked there, or scales rounded by state_dict().
    model = used(low_model(wide_base, dtype, quantisation, prepared=prepared), batch, before_it)
    before = state_of(model)
    weights = AdapterWeights(model)
    copied = private_copy(model, None, weights.layout.keys)
    copied.write(weights.read())
    with torch.inference_mode():
        first, second = copied.model(**batch).logits, copied.model(**batch).logits
    assert_untouched(model, before)
    assert torch.equal(first, second)
    # The user's model answers the same: in bits where its head is float32, else within the rounding of its logits.
    plain = answers(model.eval(), batch)
    tolerance = 0.0 if plain.dtype == torch.float32 else torch.finfo(plain.dtype).eps * 0.25
    assert (first - plain.float()).abs().max() <= tolerance


@pytest.mark.parametrize("quantisation", QUANTISED)
def test_a_model_trains_on_after_it_was_predicted_with(wide_base, batch, quantisation):
    # Red for: weights repacked for evaluation in the user's model, with which bitsandbytes cannot compute gradients.
    model = low_model(wide_base, quantisation=quantisation).train()
    twin = low_model(wide_base, quantisation=quantisation).train()
    copied = private_copy(model, None, AdapterWeights(model).layout.keys)
    with torch.inference_mode():
        copied.model(**batch)
    for trained in (model, twin):
        torch.manual_seed(0)
        trained(**batch, labels=torch.arange(4) % 3).loss.backward()
    gradients = [[p.grad for p in trained.parameters() if p.requires_grad] for trained in (model, twin)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("quantisation", BITSANDBYTES)
def test_two_copies_do_not_meet(wide_base, batch, quantisation):
    # Red for: scale objects that the copies share, so that one repacks the other's.
    model = low_model(wide_base, quantisation=quantisation).eval()
    keys = AdapterWeights(model).layout.keys
    one, other = private_copy(model, None, keys), private_copy(model, None, keys)
    with torch.inference_mode():
        first = one.model(**batch).logits
        assert torch.equal(other.model(**batch).logits, first)
        assert torch.equal(one.model(**batch).logits, first)


@pytest.mark.parametrize("quantisation", QUANTISED)
def test_a_quantised_base_has_nothing_missing(wide_base, quantisation, tmp_path):
    # Red for: scales or PEFT's names of quantised layers taken for modules that no checkpoint holds.
    assert find_unsaved_modules(low_model(wide_base, quantisation=quantisation), "default") == []


@pytest.mark.parametrize("quantisation", BITSANDBYTES)
def test_a_checkpoint_that_is_quantised_itself_has_nothing_missing(wide_base, quantisation, tmp_path):
    # Red for: names such as weight.absmax or SCB in the checkpoint, or their absence from the model.
    base = load_base(wide_base, quantisation=quantisation)
    base.save_pretrained(tmp_path / "quantised")
    assert find_unsaved_modules(low_model(tmp_path / "quantised"), "default") == []
