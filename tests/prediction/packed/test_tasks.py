"""Packed sampling of any task: events, constants and positions are the task's."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from architectures import copy_of, ragged, wide_draws
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel

from swag_trainer.prediction.packed.sampler import PackedSampler
from swag_trainer.prediction.sequential import SequentialSampler
from swag_trainer.tasks.base import TASKS, Task


class Ends(nn.Module):
    """Gives logits for the first and the last token of each text."""

    def __init__(self):
        super().__init__()
        self.embed, self.adapted, self.head = nn.Embedding(99, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask, factor=0.0):
        return {"logits": factor * self.head(self.adapted(self.embed(input_ids)).tanh())}


@pytest.fixture
def ends():
    class EndsOfTexts(Task):
        """Two events a text, but none for one that begins with token 0."""

        name: ClassVar[str] = "ends-of-texts"
        hub_tag: ClassVar[str] = "token-classification"
        auto_model: ClassVar[type] = AutoModel

        def constants(self, model):
            return {"factor": 2.0}

        def tokens(self, batch, model):
            return 2 * len(batch["input_ids"])

        def events(self, batch):
            return torch.arange(len(batch["input_ids"])).repeat_interleave(2)[self._kept(batch)]

        def read(self, outputs, batch):
            return outputs["logits"][:, [0, -1]].flatten(0, 1)[self._kept(batch)]

        def _kept(self, batch):
            return (batch["input_ids"][:, 0] != 0).repeat_interleave(2)

        def link(self, config):
            return "softmax"

        def labels(self, rows, num_labels):
            raise NotImplementedError

    yield TASKS["ends-of-texts"]
    del TASKS["ends-of-texts"]


@pytest.mark.parametrize("without", [[], [0], [0, 3], [0, 1, 2, 3, 4]])
def test_a_task_with_two_events_a_row_is_packed_draw_by_draw(ends, without):
    # Red for: one event a row taken for granted, events row by row instead of draw by draw, constants left out, the first row compared
    # although it has no event, a batch without events given up on.
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["adapted"], modules_to_save=["head"], init_lora_weights=False)
    model, batch = get_peft_model(Ends(), lora).eval(), ragged()
    batch["input_ids"][without, 0] = 0
    weights = copy_of(model)
    draws = wide_draws(weights)
    packed = PackedSampler(weights, draws, task=ends, max_tokens=30)
    found = packed(batch)
    assert found.shape == (7, 10 - 2 * len(without), 3) and packed.obstacle is None
    torch.testing.assert_close(found, SequentialSampler(copy_of(model), draws, task=ends)(batch), rtol=0, atol=1e-4)
    assert torch.equal(packed(batch), found)


def test_a_forward_holds_as_many_draws_as_the_tasks_tokens_allow(ends):
    # Red for: tokens of the input ids where the task counts its own.
    lora = LoraConfig(target_modules=["adapted"], init_lora_weights=False)
    model, rows = get_peft_model(Ends(), lora).eval(), []
    weights = copy_of(model)
    packed = PackedSampler(weights, wide_draws(weights), task=ends, max_tokens=30)
    packed(ragged())
    embed = weights.model.get_base_model().head
    embed.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    packed(ragged())
    assert rows == [15, 10, 10]
