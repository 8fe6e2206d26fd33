"""Tiny random classifiers of many architectures, with LoRA on their attention and a trained head, and draws of their weights."""

from __future__ import annotations

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import set_seed

from swag_trainer.adapters.weights import AdapterWeights, private_copy
from swag_trainer.prediction.packed.sampler import PackedSampler
from swag_trainer.prediction.sequential import SequentialSampler

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}
DECODER = SIZES | {"num_key_value_heads": 2}
# As in microsoft/deberta-v3-base: the relative positions go through the query and key projections too.
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 8,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "num_labels": 3}
BART = {
    "vocab_size": 99,
    "d_model": 32,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "init_std": 0.3,
    **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
       {"layers": 2, "attention_heads": 4, "ffn_dim": 64}.items()},
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 0}

# name: (class prefix, settings, what LoRA adapts)
ARCHITECTURES = {
    "bert": ("Bert", SIZES, ["query", "value"]),
    "roberta": ("Roberta", SIZES, ["query", "value"]),
    "distilbert": (
        "DistilBert",
        {"vocab_size": 99, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "num_labels": 3},
        ["q_lin", "v_lin"],
    ),
    "deberta-v2": ("DebertaV2", SIZES, ["query_proj", "value_proj"]),
    "deberta-v3": ("DebertaV2", SIZES | RELATIVE, ["query_proj", "value_proj"]),
    "modernbert": ("ModernBert", SIZES | {"global_attn_every_n_layers": 2, "local_attention": 8} | SPECIAL, ["Wqkv"]),
    "gpt2": (
        "GPT2",
        {"vocab_size": 99, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "num_labels": 3} | SPECIAL,
        ["c_attn"],
    ),
    "qwen2": ("Qwen2", DECODER, ["q_proj", "v_proj"]),
    "llama": ("Llama", DECODER, ["q_proj", "v_proj"]),
    "t5": ("T5", T5 | SPECIAL, ["q", "v"]),
    "bart": ("Bart", BART | SPECIAL, ["q_proj", "v_proj"]),
    "albert": ("Albert", SIZES | {"embedding_size": 16}, ["query", "value"]),
}


def tiny(name: str, **lora) -> PeftModel:
    """A PEFT classifier, in evaluation mode; the same weights each time."""
    prefix, settings, targets = ARCHITECTURES[name]
    set_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**settings)
    model = getattr(transformers, f"{prefix}ForSequenceClassification")(config)
    arguments = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": targets} | lora
    return get_peft_model(model, LoraConfig(**arguments)).eval()


def copy_of(model: PeftModel, keys=None) -> AdapterWeights:
    return private_copy(model, None, AdapterWeights(model).layout.keys if keys is None else keys)


def wide_draws(weights: AdapterWeights, num_draws: int = 7, spread: float = 0.3) -> Tensor:
    """Draws so far from each other that a wrong one shows in every answer. Shape (S, P)."""
    mean = weights.layout.flatten(dict(zip(weights.layout.keys, weights.parameters(), strict=True)))
    return mean + spread * torch.randn(num_draws, len(mean), generator=torch.Generator().manual_seed(1))


def ragged(num_rows: int = 5, length: int = 11, pad: int = 0) -> dict[str, Tensor]:
    """A padded batch of rows of 11, 9, 7, 5, 10, ... tokens, each ending with token 1."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 99, (num_rows, length), generator=generator)
    lengths = torch.tensor([length - 2 * row % 7 for row in range(num_rows)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids[torch.arange(num_rows), lengths - 1] = 1
    return {"input_ids": ids * mask + pad * (1 - mask), "attention_mask": mask}


def both(model: PeftModel, batch: dict[str, Tensor], *, keys=None, **arguments) -> tuple[PackedSampler, Tensor, Tensor]:
    """Packed and sequential logits of a batch, by two copies of a model."""
    weights = copy_of(model, keys)
    draws = wide_draws(weights)
    packed = PackedSampler(weights, draws, **arguments)
    return packed, packed(batch), SequentialSampler(copy_of(model, keys), draws)(batch)
