import pytest
import torch
from architectures import both, copy_of, ragged, tiny
from torch import nn

from swag_trainer.prediction.packed.onednn import onednn_forward, onednn_layers
from swag_trainer.prediction.packed.sampled_modules import Packing, sampled_modules


def test_a_layer_answers_as_it_does_by_itself():
    # Red for: a bias left out, dimensions lost, the weight the wrong way round. A layer of no bias and an input that is a view.
    for layer in (nn.Linear(6, 4), nn.Linear(6, 4, bias=False)):
        forward = onednn_forward(layer, Packing(mode="packed"))
        for x in (torch.randn(5, 6), torch.randn(3, 5, 6), torch.randn(3, 5, 12)[:, 1:2, ::2]):
            torch.testing.assert_close(forward(x), layer(x))


@pytest.mark.parametrize("name", ["bert", "llama", "deberta-v3"])
def test_layers_that_are_sampled_are_left_alone(name):
    # Red for: the head or a LoRA matrix among them, whose weights differ from draw to draw.
    weights = copy_of(tiny(name))
    sampled = sampled_modules(weights)
    layers = list(onednn_layers(weights.model, sampled))
    own = {id(parameter) for parameter in weights.parameters()}
    assert layers and all(type(layer) is nn.Linear and id(layer.weight) not in own for layer in layers)


def test_a_base_below_float32_and_one_with_hooks_are_left_alone():
    # Red for: the check of the weight's dtype, a hook that sees another call.
    model = tiny("bert")
    sampled = sampled_modules(copy_of(model))
    assert not list(onednn_layers(model.get_base_model().bfloat16(), sampled))
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    assert not list(onednn_layers(nn.Sequential(layer), sampled))


def test_it_is_what_answers(monkeypatch):
    # Red for: layers that are found and never replaced.
    calls, op = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *given: calls.append(1) or op(*given))
    _, found, expected = both(tiny("bert"), ragged())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert calls
