import pytest
import torch
from architectures import both, copy_of, ragged, tiny, wide_draws
from peft import LoraConfig, get_peft_model
from torch import nn

from swag_trainer.prediction.packed.pruning import at_one_position, prunable_modules
from swag_trainer.prediction.packed.sampler import PackedSampler
from swag_trainer.prediction.packed.tracing import trace_calls
from swag_trainer.prediction.sequential import SequentialSampler

FIRST = ["layer.2.attention.output", "layer.2.attention.self.query", "layer.2.intermediate", "layer.2.output"]
LAST = ["layers.2.mlp", "layers.2.post_attention_layernorm", "layers.2.self_attn.o_proj", "layers.2.self_attn.q_proj"]


def found(model, batch, whole=()):
    with torch.no_grad():
        row = {name: value[:1] for name, value in batch.items()}
        trace = trace_calls(model, batch)
        modules, position = prunable_modules(trace, lambda: model(**row)["logits"], trace.outputs["logits"], whole=whole)
    names = {module: name for name, module in model.named_modules()}
    return sorted(names[module] for module in modules), position


@pytest.mark.parametrize(("name", "expected", "position"), [("bert", FIRST, 0), ("llama", [*LAST, "norm", "score"], -1)])
def test_what_follows_the_last_attention_sees_one_position(name, expected, position):
    # Red for: keys or values pruned, which every position reads; a block before the last; leaves where a whole layer would do.
    model = tiny(name).get_base_model()
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    names, place = found(model, ragged(1), whole=layers)
    assert place == position
    assert len(names) == len(expected) and all(any(name.endswith(end) for name in names) for end in expected)


class Reader(nn.Module):
    """Embeds, mixes the positions, treats each by itself, and answers from what ``read`` picks."""

    def __init__(self, read):
        super().__init__()
        self.read = read
        self.embed, self.mix = nn.Embedding(99, 8), nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.adapted, self.single, self.head = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        y = self.single(self.adapted(self.mix(self.embed(input_ids))[0]).tanh())
        return {"logits": self.head(self.read(y, input_ids, attention_mask))}


def reader(read):
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["adapted"], modules_to_save=["head"], init_lora_weights=False)
    return get_peft_model(Reader(read), lora).eval()


READS = {
    "first": (lambda y, ids, mask: y[:, 0], ["adapted", "single"]),
    "mean": (lambda y, ids, mask: (y * mask[..., None]).sum(1), []),
    "first and last": (lambda y, ids, mask: y[:, 0] + y[:, -1], []),
    "largest": (lambda y, ids, mask: y.amax(1), []),
}


@pytest.mark.parametrize("name", READS)
def test_only_positions_that_nobody_reads_are_left_out(name):
    # Red for: modules that are pruned because their answer looks the same, a second position that is read, a mean.
    read, expected = READS[name]
    model = reader(read)
    names, _ = found(model, ragged(1), whole=[model.get_submodule("base_model.model.adapted")])
    assert [name.rpartition(".")[2] for name in names if "head" not in name] == expected
    _, answer, plain = both(model, ragged(3))
    torch.testing.assert_close(answer, plain, rtol=0, atol=1e-4)


def test_a_later_batch_that_reads_another_position_is_answered_in_full(caplog):
    # Red for: NaN given as an answer, a position believed to be the right one because it was on the first batch.
    model = reader(lambda y, ids, mask: torch.where((ids[:, :1] == 7), y[:, 3], y[:, 0]))
    weights, draws = copy_of(model), wide_draws(copy_of(model))
    packed, sequential = PackedSampler(weights, draws), SequentialSampler(copy_of(model), draws)
    batch = ragged(2)
    for first_token in (5, 7, 5):
        batch["input_ids"][:, 0] = first_token
        answer = packed(batch)
        assert torch.isfinite(answer).all() and packed.obstacle is None
        torch.testing.assert_close(answer, sequential(batch), rtol=0, atol=1e-4)
    assert not packed._strategies[0].prune


def test_a_first_batch_whose_rows_end_at_different_places_is_answered_in_full():
    # Red for: the check of the first row alone. Llama answers from the last token of each row.
    packed, answer, expected = both(tiny("llama"), ragged())
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-4)
    assert packed.obstacle is None and packed._strategies[0].cache_prefix and not packed._strategies[0].prune


def test_other_positions_come_back_as_nan():
    # Red for: zeros or copies in their place, which a mean over the positions would take for answers.
    layer, x = nn.Linear(4, 2), torch.randn(3, 5, 4)
    for position in (0, -1):
        answer = at_one_position(layer.forward, position)(x)
        torch.testing.assert_close(answer[:, position], layer(x)[:, position])
        answer[:, position] = torch.nan
        assert answer.isnan().all() and answer.shape == (3, 5, 2)


def test_a_prediction_over_one_class_of_positions_computes_less():
    # Red for: pruning that is proved but never put in. The last block's feed-forward layer sees one position a row.
    model, batch = tiny("bert"), ragged(2, length=8)
    batch["attention_mask"][:] = 1
    weights = copy_of(model)
    packed = PackedSampler(weights, wide_draws(weights))
    packed(batch)
    seen = []
    dense = weights.model.get_base_model().bert.encoder.layer[2].intermediate.dense
    dense.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    packed(batch)
    assert seen == [(7 * 2, 1, 32)]
