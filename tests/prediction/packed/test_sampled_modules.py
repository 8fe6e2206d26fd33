import pytest
import torch
from architectures import both, copy_of, ragged, tiny
from peft import LoraConfig, get_peft_model
from torch import nn

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.packed.sampled_modules import NotPacked, sampled_modules


def test_a_dora_is_one_whatever_of_it_is_sampled():
    # Red for: its matrices taken for those of LoRA, its magnitudes being fixed here.
    model = tiny("bert", use_dora=True)
    keys = [key for key in AdapterWeights(model).layout.keys if "magnitude" not in key]
    packed, found, expected = both(model, ragged(), keys=keys)
    assert "DoRA" in packed.obstacle
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_where_rows_are_not_in_front_the_module_around_answers_for_all_draws():
    # Red for: relative positions, which have no rows, cut into draws: 16 of them by 4 draws goes without an error.
    packed, found, expected = both(tiny("deberta-v3"), ragged())
    replaced = {type(module).__name__ for module in packed._weights.model.modules() if "forward" in module.__dict__}
    assert "DisentangledSelfAttention" in replaced
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


class Rowless(nn.Module):
    """Adapts a layer that no row goes through."""

    def __init__(self, *, with_table):
        super().__init__()
        self.adapted = nn.Linear(4, 3)
        self.with_table = with_table

    def forward(self, input_ids, attention_mask):
        table = self.adapted(torch.ones(1, 4))
        logits = {"logits": table * input_ids.sum(1, keepdim=True) / 100}
        return logits | {"table": table} if self.with_table else logits


@pytest.mark.parametrize("with_table", [False, True])
def test_the_module_around_must_take_and_give_rows_alone(with_table):
    # Red for: a climb that ends above the model, or a table of S draws handed on where one of none is expected.
    model = get_peft_model(
        Rowless(with_table=with_table), LoraConfig(target_modules=["adapted"], init_lora_weights=False)
    ).eval()
    packed, found, expected = both(model, ragged())
    assert packed.obstacle is None if not with_table else "'base_model.model.adapted'" in packed.obstacle
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_an_adapter_beside_the_active_one_changes_nothing():
    # Red for: all adapters of a layer taken for active, or the first one for the sampled one.
    model = tiny("bert")
    model.add_adapter("other", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "key"], init_lora_weights=False))
    packed, found, expected = both(model, ragged())
    assert packed.obstacle is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_several_active_adapters_in_a_layer_are_not_packed():
    # Red for: one of them left out of the answer.
    weights = copy_of(tiny("bert"))
    layer = weights.model.get_base_model().bert.encoder.layer[0].attention.self.query
    layer._active_adapter = ["default", "other"]
    with pytest.raises(NotPacked, match="several active"):
        sampled_modules(weights)
