"""Bases of low precision: bfloat16, float16, and 4 and 8 bits as far as this CPU's libraries run them."""

import importlib.util

import pytest
import torch
from conftest import LABELS
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, set_seed

# Without it transformers 5.23 quantises the classifier as well, of which PEFT then cannot train a copy.
SKIPPED = ["classifier"]


def bitsandbytes_4bit():
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=SKIPPED
    )


def bitsandbytes_8bit():
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=SKIPPED)


def torchao_8bit():
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=SKIPPED)


def quantised_by(library, make):
    missing = importlib.util.find_spec(library) is None
    skip = pytest.mark.skipif(missing, reason=f"{library} is not on the path: `make test` adds it for these tests alone")
    return pytest.param(make, marks=[pytest.mark.quantised, skip], id=make.__name__)


BITSANDBYTES = [quantised_by("bitsandbytes", make) for make in (bitsandbytes_4bit, bitsandbytes_8bit)]
QUANTISED = [*BITSANDBYTES, quantised_by("torchao", torchao_8bit)]


def write_wide_base(folder, tokenizer):
    """A tiny BERT whose rows are a block of 4-bit weights wide: bitsandbytes cannot repack narrower ones."""
    tokenizer.save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=3,  # as load_base asks for: transformers 5.18 keeps a quantised checkpoint's head whatever num_labels is
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def load_base(folder, dtype=torch.bfloat16, quantisation=None, *, prepared=False):
    set_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=3,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        ignore_mismatched_sizes=True,
        dtype=dtype,
        **({"quantization_config": quantisation()} if quantisation else {}),
    )
    return prepare_model_for_kbit_training(base) if prepared else base


def low_model(folder, dtype=torch.bfloat16, quantisation=None, *, prepared=False, autocast=True, **config):
    """A PEFT classifier on such a base; its head is in the base's dtype."""
    base = load_base(folder, dtype, quantisation, prepared=prepared)
    settings = {"task_type": "SEQ_CLS", "r": 4, "lora_dropout": 0.1, "target_modules": ["query", "value"]} | config
    return get_peft_model(base, LoraConfig(**settings), autocast_adapter_dtype=autocast)
