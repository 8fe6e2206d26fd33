"""The longest input that a model can take, against the model itself."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from swag_trainer.adapters.positions import num_positions

SIZES = {"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
SMALL = SIZES | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES = {
    "bert": (SMALL | {"max_position_embeddings": 12}, 12),
    "roberta": (SMALL | {"max_position_embeddings": 14}, 12),  # of 514 rows, 512 can be used
    "distilbert": (SIZES | {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 12}, 12),
    "gpt2": (SIZES | {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}, 12),
    "opt": (SMALL | {"ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 12}, 12),
    "llama": (SMALL | {"max_position_embeddings": 12}, None),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_input_goes_through_the_model_and_one_token_more_does_not(family):
    # Red for: RoBERTa's 514 taken for positions, OPT's offset, a limit on rotary positions, which have none.
    settings, expected = FAMILIES[family]
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **settings)).eval()
    assert num_positions(model) == expected
    longest = expected or 40

    def logits(length):
        ids = torch.full((1, length), 5)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    with torch.no_grad():
        assert torch.isfinite(logits(longest)).all()
        if expected is not None:
            with pytest.raises((IndexError, RuntimeError, ValueError)):
                logits(longest + 1)
