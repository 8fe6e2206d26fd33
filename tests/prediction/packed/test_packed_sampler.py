import itertools
import logging
import threading
from contextlib import nullcontext

import pytest
import torch
from adapter_kinds import ADAPTERS, model_with
from architectures import ARCHITECTURES, both, copy_of, ragged, tiny, wide_draws
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from swag_trainer.prediction.packed import sampler as packed_module
from swag_trainer.prediction.packed.pruning import at_one_position
from swag_trainer.prediction.packed.sampler import PackedSampler

PACKABLE = ["lora", "rslora", "pooler", "olora"]


def identity(model):
    """Everything of a model that a prediction might leave changed."""
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    state = {name: (id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad) for name, tensor in tensors}
    for name, module in model.named_modules():
        hooks = [dict(module._forward_hooks), dict(module._forward_pre_hooks), module.__dict__.get("forward")]
        state[f"{name}."] = (id(module), module.training, *hooks)
    return state | {"config": (id(model.config), model.config.to_dict())}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_is_sequential_draw_by_draw(name):
    # Red for: rows before draws in the packed batch, A and B of different draws, a scaling left out, a mask not repeated.
    model, batch = tiny(name), ragged()
    packed, found, expected = both(model, batch, max_tokens=3 * batch["input_ids"].numel())
    assert packed.obstacle is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    one = {key: value[1:2, :9] for key, value in batch.items()}
    torch.testing.assert_close(packed(one), expected[:, 1:2], rtol=0, atol=1e-4)
    # The comparison sees a wrong draw: with two draws' adapters exchanged no answer of theirs is right.
    wrong = packed(batch, packed._draws[[0, 1, 3, 2, 4, 5, 6]])
    assert (wrong - expected)[[2, 3]].abs().amax(-1).min() > 1e-2
    assert (wrong - expected)[[0, 1, 4, 5, 6]].abs().max() < 1e-4


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_any_kind_answers_as_it_does_sequentially(base_folder, name, caplog):
    # Red for: DoRA taken for LoRA, a trained bias or a trained token that is left at its mean, a fallback that is silent or loud.
    model, batch = model_with(base_folder, name), {name: value % 28 for name, value in ragged().items()}
    with caplog.at_level(logging.INFO, logger="swag_trainer.prediction"):
        packed, found, expected = both(model, batch)
        packed(batch)
    assert (packed.obstacle is None) == (name in PACKABLE)
    assert sum("one after the other" in line for line in caplog.messages) == (name not in PACKABLE)
    assert all(record.levelno == logging.INFO for record in caplog.records if record.name.startswith("swag_trainer"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.std(0).min() > 1e-3


def test_the_users_model_is_the_same_before_during_and_after(caplog):
    # Red for: forwards or hooks put into the user's modules, use_cache switched off in the user's config, tensors replaced.
    model, batch = tiny("qwen2"), ragged()
    before, during = identity(model), []
    weights = copy_of(model)
    packed = PackedSampler(weights, wide_draws(weights))
    block = weights.model.get_base_model().model.layers[1]
    block.register_forward_pre_hook(lambda module, arguments: during.append(identity(model) == before))
    packed(batch)
    assert packed.obstacle is None and len(during) >= 3 and all(during)
    assert identity(model) == before and model.config.use_cache
    shared = {parameter.data_ptr() for parameter in model.parameters()} & {p.data_ptr() for p in weights.model.parameters()}
    assert len(shared) == len(list(model.parameters())) - len(weights.layout.keys)


@pytest.mark.parametrize(
    ("error", "layer", "call"),
    [(KeyboardInterrupt, 0, call) for call in range(9)]
    + [(KeyboardInterrupt, 2, call) for call in range(16)]
    + [(MemoryError, 0, 0), (MemoryError, 2, 4), (torch.OutOfMemoryError, 2, 3)],
)
def test_an_interrupt_anywhere_leaves_the_model_and_the_next_answer_alone(error, layer, call):
    # Red for: a state that is only put right where nothing is raised: a counter, a mode, a hook of the trace. The calls are two rows, one
    # row, proofs that positions are not read (of the last layer only), what comes before the adapter, and the first draws.
    model, batch = tiny("roberta"), ragged()
    _, _, expected = both(model, batch)
    weights, before, calls = copy_of(model), identity(model), []
    packed = PackedSampler(weights, wide_draws(weights), max_tokens=1)

    def interrupt(module, arguments):
        calls.append(1)
        if len(calls) == call + 1:
            raise error

    handle = weights.model.get_base_model().roberta.encoder.layer[layer].attention.register_forward_pre_hook(interrupt)
    if error is MemoryError:
        packed(batch)  # an ordinary exception, which the plain forward did not repeat
    else:
        with pytest.raises(error):
            packed(batch)
    handle.remove()
    assert identity(model) == before
    assert not any(hook for module in weights.model.modules() for hook in module._forward_hooks.values())
    torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)


def test_a_parameter_that_an_interrupt_left_elsewhere_is_put_back():
    # Red for: functional_call interrupted in its finally; a plain forward of the copy would then ignore what is written.
    model, batch = tiny("roberta"), ragged()
    weights = copy_of(model)
    packed, draws = PackedSampler(weights, wide_draws(weights)), wide_draws(weights)
    expected = packed(batch)
    dense = weights.model.get_base_model().classifier.modules_to_save["default"].dense
    dense._parameters["weight"] = nn.Parameter(torch.zeros_like(dense.weight))
    packed._give_up("to see the plain path")
    torch.testing.assert_close(packed(batch, draws), expected, rtol=0, atol=1e-4)


def test_a_forward_that_an_interrupt_left_behind_is_put_back():
    # Red for: a list of what was replaced, which an interrupt may cut short; a plain forward after giving up that is not plain.
    model, batch = tiny("roberta"), ragged()
    weights = copy_of(model)
    packed = PackedSampler(weights, wide_draws(weights))
    expected = packed(batch)
    for begin_anew in (lambda: setattr(packed, "_prepared_for", None), lambda: packed._give_up("to see the plain path")):
        dense = weights.model.get_base_model().roberta.encoder.layer[0].output.dense
        dense.forward = at_one_position(dense.forward, 0, prove=nullcontext)
        begin_anew()
        torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)


def test_predictors_in_several_threads_and_a_plain_forward_meanwhile_do_not_meet():
    # Red for: anything replaced in modules that two copies or the user's model share, or a hook that is global.
    model, batch = tiny("llama"), ragged()
    with torch.no_grad():
        plain = model(**batch).logits
    _, _, expected = both(model, batch)
    wrong, copies = [], [copy_of(model) for _ in range(3)]

    def ask(weights):
        packed = PackedSampler(weights, wide_draws(weights))
        wrong.extend((packed(batch) - expected).abs().max() > 1e-4 for _ in range(5))

    def forward():
        with torch.no_grad():
            wrong.extend(not torch.equal(model(**batch).logits, plain) for _ in range(20))

    threads = [threading.Thread(target=ask, args=(weights,)) for weights in copies] + [threading.Thread(target=forward)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 35 and not any(wrong)


def test_a_hook_of_the_users_own_is_answered_sequentially(caplog):
    # Red for: a hook that counts on B rows given S * B.
    model, batch = tiny("bert"), ragged()
    seen = []
    layer = model.get_base_model().bert.encoder.layer[1]
    layer.register_forward_hook(lambda module, arguments, output: seen.append(len(output)) or output * 1.5)
    with caplog.at_level(logging.INFO, logger="swag_trainer.prediction"):
        packed, found, expected = both(model, batch)
    assert "layer.1" in packed.obstacle and "hook" in caplog.text
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert set(seen) == {5}


def test_a_model_that_refuses_more_than_one_row_is_answered_sequentially():
    # Red for: GPT-2 without a padding token, which takes a single row only, raising where it answered before.
    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, num_labels=3)
    model = get_peft_model(GPT2ForSequenceClassification(config), LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True)).eval()
    packed, found, expected = both(model, {name: value[:1] for name, value in ragged().items()})
    assert "padding token" in packed.obstacle
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_packed_answers_are_not_believed_where_they_differ_from_a_plain_one(monkeypatch, caplog):
    # Red for: a first batch that is not compared; here a layer that looks at how many rows there are.
    model, batch = tiny("bert"), ragged()
    forward = nn.LayerNorm.forward
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: forward(self, x) * (1 + 0.1 * (len(x) > 5)))
    with caplog.at_level(logging.INFO, logger="swag_trainer.prediction"):
        packed, found, expected = both(model, batch)
    assert "differ" in packed.obstacle
    assert torch.equal(found, expected)


def test_a_mistake_in_a_batch_is_the_users_to_see_and_changes_nothing():
    # Red for: a wrong token id that switches packing off for good, or is swallowed.
    model, batch = tiny("bert"), ragged()
    weights = copy_of(model)
    packed = PackedSampler(weights, wide_draws(weights))
    expected = packed(batch)
    with pytest.raises(IndexError):
        packed({**batch, "input_ids": batch["input_ids"] + 99})
    assert packed.obstacle is None
    assert torch.equal(packed(batch), expected)


def test_it_answers_inside_inference_mode_and_with_its_tensors():
    # Red for: version counters asked of tensors that have none.
    model = tiny("bert")
    weights = copy_of(model)
    draws = wide_draws(weights)
    expected = PackedSampler(weights, draws)(ragged())
    with torch.inference_mode():
        found = PackedSampler(copy_of(model), draws)
        assert torch.equal(found(ragged()), expected) and found.obstacle is None


def test_a_batch_with_other_inputs_is_looked_at_anew(monkeypatch):
    # Red for: the calls of the first kind of batch applied to another; here embeddings in the place of tokens, and back.
    model, batch, traces, trace_calls = tiny("deberta-v3"), ragged(), [], packed_module.trace_calls
    packed, found, expected = both(model, batch)
    monkeypatch.setattr(packed_module, "trace_calls", lambda *args: traces.append(1) or trace_calls(*args))
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach()
    other = {"inputs_embeds": embedded, "attention_mask": batch["attention_mask"]}
    for _ in range(2):
        torch.testing.assert_close(packed(other), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(packed(other), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)
    assert packed.obstacle is None and len(traces) == 4


@pytest.mark.slow
def test_a_compiled_forward_is_one_graph_with_the_same_answers(monkeypatch):
    # Red for: a draw that is a constant of the graph, or Python that breaks it (fullgraph raises).
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile(model, backend="eager", fullgraph=True))
    model, batch = tiny("llama"), ragged()
    packed, found, expected = both(model, batch, compile=True)
    assert packed.obstacle is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    turned = packed(batch, packed._draws.flip(0))
    torch.testing.assert_close(turned, expected.flip(0), rtol=0, atol=1e-4)
