from types import SimpleNamespace

import pytest
import torch
from architectures import copy_of, ragged, tiny, wide_draws
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer, BertModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.packed import sampler as packed_module
from swag_trainer.prediction.packed.sampler import PackedSampler
from swag_trainer.prediction.sequential import SequentialSampler

S, B = 7, 5


def last_names(packed):
    return {module: name.rpartition(".")[2] for name, module in packed._weights.model.named_modules()}


def rows_seen(kind, packed, batch):
    """The finished calls of the modules of a class in a batch that is not the first: last part of the name, rows."""
    names, seen, forward = last_names(packed), [], kind.forward

    def counted(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        seen.append((names[self], len(args[0] if args else kwargs["input_ids"])))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", counted)
        packed(batch)
        seen.clear()
        packed(batch)
    return seen


@pytest.mark.parametrize(("name", "kind"), [("bert", BertLayer), ("llama", LlamaDecoderLayer)])
def test_blocks_before_the_adapter_see_each_row_once_however_many_forwards_there_are(name, kind):
    # Red for: a prefix that runs once per draw, or once per forward of three draws.
    model, batch = tiny(name, layers_to_transform=[2]), ragged(B)
    weights = copy_of(model)
    draws = wide_draws(weights, S)
    packed = PackedSampler(weights, draws, max_tokens=3 * batch["input_ids"].numel())
    seen = rows_seen(kind, packed, batch)
    assert seen == [("0", B), ("1", B), ("2", 3 * B), ("2", 2 * B), ("2", 2 * B)]
    expected = SequentialSampler(copy_of(model), draws)(batch)
    torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)


def test_a_posterior_over_the_head_alone_costs_one_forward():
    # Red for: a fixed LoRA layer taken for a sampled one; a model that runs again for the S heads.
    model, batch = tiny("bert"), ragged(B)
    keys = [key for key in AdapterWeights(model).layout.keys if "classifier" in key]
    weights = copy_of(model, keys)
    packed = PackedSampler(weights, wide_draws(weights, S), max_tokens=1)
    assert rows_seen(BertModel, packed, batch) == [("bert", B)]


def test_projections_of_the_first_adapted_block_see_each_row_once_per_forward(monkeypatch):
    # Red for: base weights of query, and key, which read what is the same for all draws, multiplied with S copies of it.
    monkeypatch.setattr(packed_module, "onednn_layers", lambda *_: [])
    model, batch = tiny("bert"), ragged(B)
    weights = copy_of(model)
    packed = PackedSampler(weights, wide_draws(weights, S))
    packed(batch)
    seen, linear = [], nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda x, *args: seen.append(x.shape[0]) or linear(x, *args))
    packed(batch)
    # query, key, value and then the rest of the first block; in the two others every product sees S * B rows.
    assert seen[:4] == [B, B, B, S * B] and set(seen[4:]) == {S * B}


class Small(nn.Module):
    """Embeds, goes its way, which includes the adapted layer, and answers."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.embed = nn.Embedding(99, 8)
        self.fixed, self.other, self.adapted = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.boxing, self.turning, self.writing = (
            Boxing(8, 8),
            Turning(8, 8),
            nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)),
        )
        self.head = nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(S * B, 8))

    def forward(self, input_ids, attention_mask):
        y = self.way(self, self.embed(input_ids), input_ids)
        return {"logits": self.head((y * attention_mask[..., None]).sum(1))}


class Boxing(nn.Linear):
    def forward(self, x):
        return SimpleNamespace(tensor=super().forward(x))


class Turning(nn.Linear):
    def forward(self, x):
        return super().forward(x).transpose(0, 1)


def calls_one_module_three_times(m, x, ids):
    return m.adapted(m.fixed(m.fixed(m.fixed(x))))


def writes_to_what_a_module_gave(m, x, ids):
    x = m.fixed(x)
    x += 1
    return m.adapted(x)


def has_rows_in_the_second_dimension(m, x, ids):
    return m.adapted(m.fixed(x.transpose(0, 1)).transpose(0, 1))


def calls_a_module_with_as_many_constants_as_there_are_rows(m, x, ids):
    return m.adapted(x + m.fixed(m.table)[ids % 35])


def writes_to_constants(m, x, ids):
    table = m.fixed(m.table)
    table += 1
    return m.adapted(x + table[ids % 35])


def gives_an_object(m, x, ids):
    return m.adapted(m.boxing(x).tensor)


def writes_to_what_a_module_got(m, x, ids):
    x = x * 1.0
    return m.adapted(x + m.writing(x))


def makes_the_same_tensor_differ_from_draw_to_draw(m, x, ids):
    x = m.fixed(x)
    y = m.adapted(x)
    x += y
    return y + m.other(x)


def turns_what_is_the_same_for_every_draw(m, x, ids):
    x = m.fixed(x)
    return m.adapted(x) + m.turning(x).transpose(0, 1)


@pytest.mark.parametrize(
    ("way", "kept"),
    [
        (calls_one_module_three_times, [("embed", 0), ("fixed", 0), ("fixed", 1), ("fixed", 2)]),
        (writes_to_what_a_module_gave, [("embed", 0), ("fixed", 0)]),
        (has_rows_in_the_second_dimension, [("embed", 0), ("fixed", 0)]),
        (calls_a_module_with_as_many_constants_as_there_are_rows, [("embed", 0), ("fixed", 0)]),
        (writes_to_constants, [("embed", 0), ("fixed", 0)]),
        (gives_an_object, [("embed", 0)]),
        (writes_to_what_a_module_got, [("embed", 0)]),
        (makes_the_same_tensor_differ_from_draw_to_draw, [("embed", 0), ("fixed", 0)]),
        (turns_what_is_the_same_for_every_draw, [("embed", 0), ("fixed", 0)]),
    ],
)
@pytest.mark.parametrize("draws_at_once", [7, 3])
def test_what_a_model_does_around_its_modules_is_not_lost(way, kept, draws_at_once):
    # Red for: outputs kept or given without a copy, one call of a module taken for another, rows told by their number or taken for
    # granted in front, a tensor believed to be S copies after it was written to.
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["adapted"], modules_to_save=["head"], init_lora_weights=False)
    model, batch = get_peft_model(Small(way), lora).eval(), ragged(B)
    weights = copy_of(model)
    draws = wide_draws(weights, S)
    packed = PackedSampler(weights, draws, max_tokens=draws_at_once * batch["input_ids"].numel())
    expected = SequentialSampler(copy_of(model), draws)(batch)
    for _ in range(2):
        torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)
    assert packed.obstacle is None and packed._strategies[0].cache_prefix
    names = last_names(packed)
    assert sorted((names[module], call) for module, call in packed._prefix._kept) == kept


def test_relative_positions_are_not_taken_for_rows():
    # Red for: a first dimension as long as there are rows, 16 = 4 draws of 4 rows = 2 * 8 buckets, copied or cut.
    model, batch = tiny("deberta-v3", layers_to_transform=[2]), ragged(4)
    weights = copy_of(model)
    draws = wide_draws(weights, 4)
    packed = PackedSampler(weights, draws, max_tokens=10_000)
    expected = SequentialSampler(copy_of(model), draws)(batch)
    torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)
    assert packed.obstacle is None and packed._strategies[0].cache_prefix and len(packed._prefix._kept) == 4


def test_sharing_is_given_up_where_it_changes_answers(caplog):
    # Red for: answers that are believed unchecked. Here a module without sampled weights leaves rows behind for one that comes later.
    class Whispering(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = Embedding(99, 8)
            self.adapted = nn.Linear(8, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, input_ids, attention_mask):
            x = self.adapted(self.embed(input_ids))
            return {"logits": self.head((x + self.embed.aside).sum(1))}

    class Embedding(nn.Embedding):
        def forward(self, ids):
            self.aside = 0.1 * ids[:, :, None]
            return super().forward(ids)

    torch.manual_seed(0)
    model = get_peft_model(Whispering(), LoraConfig(target_modules=["adapted"], init_lora_weights=False)).eval()
    weights, batch = copy_of(model), ragged(B)
    draws = wide_draws(weights, S)
    expected = SequentialSampler(copy_of(model), draws)(batch)
    packed = PackedSampler(weights, draws)
    with caplog.at_level("INFO", logger="swag_trainer.prediction"):
        torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)
    assert packed.obstacle is None and not packed._strategies[0].cache_prefix and "for each draw: RuntimeError" in caplog.text
