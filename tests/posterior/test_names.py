import pytest
import torch
from conftest import LABELS, trainer_for
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from swag_trainer import SwagCallback, SwagError, load_posterior


class Heads(nn.Module):
    """A head in a ModuleDict, whose names may hold anything but a dot."""

    def __init__(self, name, head):
        super().__init__()
        self.heads, self.name = nn.ModuleDict({name: head}), name

    def forward(self, hidden):
        return self.heads[self.name](hidden)


def model_with_head(base_folder, name):
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=len(LABELS), ignore_mismatched_sizes=True)
    base.classifier = Heads(name, base.classifier)
    return get_peft_model(base, LoraConfig(target_modules=["query"], modules_to_save=["classifier"], r=2))


def test_a_head_whose_name_has_a_colon_is_trained_saved_and_loaded(base_folder, rows, tokenizer, tmp_path):
    # Red for: a file that is refused because of a name that PyTorch allows, after the whole run.
    swag = SwagCallback(rank=2)
    trainer_for(model_with_head(base_folder, "head:main"), rows, tokenizer, tmp_path, callbacks=[swag], max_steps=8).train()
    loaded = load_posterior(tmp_path)
    (key,) = (key for key in loaded.layout.keys if key.endswith("head:main.weight"))
    assert torch.equal(loaded.mean[key], swag.posterior.mean[key])


def test_a_name_that_no_file_can_have_is_refused_before_the_first_step(base_folder, rows, tokenizer, tmp_path):
    # Red for: SwagCollector without check_names: the run ends, and then its posterior cannot be saved or read.
    trainer = trainer_for(model_with_head(base_folder, "a\nb"), rows, tokenizer, tmp_path, callbacks=[SwagCallback(rank=2)])
    with pytest.raises(SwagError, match=r"'base_model.*a\\nb.*could not be saved"):
        trainer.train()
    assert trainer.state.global_step == 0
