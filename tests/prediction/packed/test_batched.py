import pytest
import torch
from architectures import both, copy_of, ragged, tiny, wide_draws
from peft import LoraConfig, get_peft_model
from torch import nn

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.packed.sampler import PackedSampler
from swag_trainer.prediction.sequential import SequentialSampler


def test_a_rank_and_an_alpha_of_a_modules_own_are_kept():
    # Red for: one scaling for all modules, or a rank taken from the configuration.
    model = tiny("bert", rank_pattern={"layer.0": 2}, alpha_pattern={"layer.1.attention.self.query": 3}, use_rslora=True)
    packed, found, expected = both(model, ragged())
    assert packed.obstacle is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kept", ["lora_B", "classifier"])
def test_weights_that_are_not_sampled_stay_where_they_are(kept):
    # Red for: A taken for sampled because B is, or a head's bias without its weight.
    model = tiny("bert")
    keys = [key for key in AdapterWeights(model).layout.keys if kept in key]
    packed, found, expected = both(model, ragged(), keys=keys)
    assert packed.obstacle is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_low_rank_part_is_float32_over_a_bfloat16_base():
    # Red for: draws cast to bfloat16, where two close ones fall together. The draws are 1e-4 apart at A = B = 1.
    base = tiny("bert").get_base_model().bfloat16()
    layer = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["output.dense"])).eval()
    weights = copy_of(layer, [key for key in AdapterWeights(layer).layout.keys if "lora_A" in key])
    seen = []
    module = weights.model.get_submodule("base_model.model.bert.encoder.layer.0.output.dense")
    module.lora_B["default"].weight.data.fill_(1.0)
    draws = 1 + 1e-4 * torch.arange(3.0)[:, None].expand(3, weights.layout.size).contiguous()
    packed = PackedSampler(weights, draws)
    packed({name: value[:1] for name, value in ragged().items()})
    assert packed.obstacle is None
    bmm = torch.bmm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bmm", lambda *args: seen.append([arg.dtype for arg in args]) or bmm(*args))
        logits = packed({name: value[:1] for name, value in ragged().items()})
    assert logits.dtype == torch.bfloat16
    assert seen and all(dtype == torch.float32 for dtypes in seen for dtype in dtypes)
    assert packed._packing.weights[weights.layout.keys[0]].unique().numel() == 3


def test_a_bfloat16_base_gives_what_it_gives_sequentially():
    # Red for: a sum that is rounded twice, an input that is not cast.
    base = tiny("roberta").get_base_model().bfloat16()
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])).eval()
    packed, found, expected = both(model, ragged())
    assert packed.obstacle is None and found.dtype == expected.dtype
    # bfloat16 has 8 bits; the head is held in float32 by both.
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)


def test_the_low_rank_part_is_float32_under_autocast_too():
    # Red for: a product that autocast takes down to bfloat16; a model trained with bf16=True is called under it.
    model, dtypes = tiny("bert"), []
    weights = copy_of(model)
    packed = PackedSampler(weights, wide_draws(weights))
    packed(ragged())
    bmm = torch.bmm
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):
        patch.setattr(torch, "bmm", lambda *args: dtypes.append(bmm(*args).dtype) or bmm(*args))
        packed(ragged())
    assert set(dtypes) == {torch.float32}


def test_what_a_hook_keeps_of_a_base_layer_is_not_written_to():
    # Red for: the low-rank part added in place to a tensor that somebody else holds.
    model, kept = tiny("bert"), []
    hook = lambda module, arguments, output: kept.append((output, output.clone()))  # noqa: E731
    hook.__module__ = "transformers.utils.output_capturing"
    model.get_base_model().bert.encoder.layer[2].attention.self.query.base_layer.register_forward_hook(hook)
    packed, found, expected = both(model, ragged())
    assert packed.obstacle is None and kept
    for output, before in kept:
        torch.testing.assert_close(output, before, rtol=0, atol=0, equal_nan=True)  # NaN: a position that was left out
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


class Windows(nn.Module):
    """Answers long texts window by window, all rows' first windows before all rows' second ones."""

    def __init__(self):
        super().__init__()
        self.embed, self.adapted, self.head = nn.Embedding(99, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        windows = torch.cat(input_ids.split(6, dim=1))
        y = self.adapted(self.embed(windows)).mean(1)
        return {"logits": self.head(y.unflatten(0, (-1, len(input_ids))).mean(0))}


def test_rows_that_become_more_are_not_taken_for_draws():
    # Red for: a layer that got one row per row in the first batch and gets two in the next, cut into draws all the same.
    model = get_peft_model(Windows(), LoraConfig(target_modules=["adapted"], init_lora_weights=False)).eval()
    batches = [ragged(4, length=length) for length in (6, 12, 6)]
    packed, _, _ = both(model, batches[0])
    for batch in batches:
        _, _, expected = both(model, batch)
        torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)
    assert packed.obstacle is None


class Sideways(nn.Linear):
    """A head that takes the rows in the second dimension and gives them in the first."""

    def forward(self, x):
        return super().forward(x.transpose(0, 1))


class SidewaysModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.adapted, self.head = nn.Embedding(99, 8), nn.Linear(8, 8), Sideways(8, 3)

    def forward(self, input_ids, attention_mask):
        return {"logits": self.head(self.adapted(self.embed(input_ids)).transpose(0, 1)).mean(1)}


def test_a_head_whose_rows_are_not_in_front_is_not_cut_into_draws_there():
    # Red for: positions cut into draws: 12 of them by 7 goes wrong, by 6 without an error.
    lora = LoraConfig(target_modules=["adapted"], modules_to_save=["head"], init_lora_weights=False)
    model, batch = get_peft_model(SidewaysModel(), lora).eval(), ragged(length=12)
    weights = copy_of(model)
    draws = wide_draws(weights, 6)
    packed = PackedSampler(weights, draws)
    expected = SequentialSampler(copy_of(model), draws)(batch)
    torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)
    assert packed.obstacle is None
