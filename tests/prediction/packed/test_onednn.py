import pytest
import torch
from architectures import both, copy_of, ragged, tiny
from torch import nn

from swag_trainer.prediction.packed import onednn
from swag_trainer.prediction.packed.onednn import Cpu, onednn_forward, onednn_layers, parse_cpuinfo, prefers_onednn
from swag_trainer.prediction.packed.sampled_modules import Packing, sampled_modules


@pytest.fixture
def on_zen_5(monkeypatch):
    """As on a CPU where oneDNN is preferred."""
    monkeypatch.setattr(onednn, "this_cpu", lambda: Cpu("AuthenticAMD", 26, "AVX512"))


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        (Cpu("AuthenticAMD", 26, "AVX512"), True),  # Zen 5: measured, 2.0 to 2.3 x
        (Cpu("AuthenticAMD", 26, "AVX2"), False),  # Zen 5 whose AVX-512 is switched off
        (Cpu("AuthenticAMD", 25, "AVX512"), False),  # Zen 4: not measured
        (Cpu("AuthenticAMD", 25, "AVX2"), False),  # Zen 3: measured, 0.94 x
        (Cpu("GenuineIntel", 6, "AVX512"), False),
        (Cpu("GenuineIntel", 26, "AVX512"), False),
        (Cpu("", -1, "AVX512"), False),
        (Cpu("", -1, "DEFAULT"), False),
    ],
)
def test_onednn_is_used_only_where_it_was_measured_to_be_faster(cpu, expected):
    # Red for: any AVX-512, any AMD, or a CPU that was not measured.
    assert prefers_onednn(cpu) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n", Cpu("AuthenticAMD", 26, "AVX512")),
        (
            "vendor_id\t: GenuineIntel\ncpu family\t: 6\n\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n",
            Cpu("GenuineIntel", 6, "AVX512"),
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\n", Cpu("", -1, "AVX512")),
        ("cpu family\t: unknown\n", Cpu("", -1, "AVX512")),
        ("", Cpu("", -1, "AVX512")),
    ],
)
def test_the_cpu_is_the_first_one_of_cpuinfo(text, expected):
    # Red for: the last processor's, a model for a family, an error where a line is missing or no number.
    assert parse_cpuinfo(text, "AVX512") == expected


def test_two_processes_of_one_machine_take_the_same_path():
    # Red for: a rule that measures, or depends on what ran before.
    assert onednn.this_cpu.__wrapped__() == onednn.this_cpu()
    assert onednn.this_cpu().capability == torch.backends.cpu.get_cpu_capability()


def test_a_layer_answers_as_it_does_by_itself():
    # Red for: a bias left out, dimensions lost, the weight the wrong way round. A layer of no bias and an input that is a view.
    for layer in (nn.Linear(6, 4), nn.Linear(6, 4, bias=False)):
        forward = onednn_forward(layer, Packing(mode="packed"))
        for x in (torch.randn(5, 6), torch.randn(3, 5, 6), torch.randn(3, 5, 12)[:, 1:2, ::2]):
            torch.testing.assert_close(forward(x), layer(x))


@pytest.mark.parametrize("name", ["bert", "llama", "deberta-v3"])
def test_layers_that_are_sampled_are_left_alone(on_zen_5, name):
    # Red for: the head or a LoRA matrix among them, whose weights differ from draw to draw.
    weights = copy_of(tiny(name))
    sampled = sampled_modules(weights)
    layers = list(onednn_layers(weights.model, sampled))
    own = {id(parameter) for parameter in weights.parameters()}
    assert layers and all(type(layer) is nn.Linear and id(layer.weight) not in own for layer in layers)


def test_a_base_below_float32_and_one_with_hooks_are_left_alone(on_zen_5):
    # Red for: the check of the weight's dtype, a hook that sees another call.
    model = tiny("bert")
    sampled = sampled_modules(copy_of(model))
    assert not list(onednn_layers(model.get_base_model().bfloat16(), sampled))
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    assert not list(onednn_layers(nn.Sequential(layer), sampled))


def test_it_is_what_computes_there_and_not_elsewhere(on_zen_5, monkeypatch):
    # Red for: layers that are found and never replaced, a rule that is not asked.
    calls, op = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *given: calls.append(1) or op(*given))
    _, found, expected = both(tiny("bert"), ragged())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert calls
    calls.clear()
    monkeypatch.setattr(onednn, "this_cpu", lambda: Cpu("GenuineIntel", 6, "AVX512"))
    both(tiny("bert"), ragged())
    assert not calls
