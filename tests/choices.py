"""Tiny random causal language models, their tokenizer, and multiple-choice questions with 3 to 5 choices."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from conftest import WORDS
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, set_seed

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
# name: (class of the config, of the model, sizes, what LoRA adapts)
DECODERS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", SIZES, ["q_proj", "v_proj"]),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", SIZES, ["q_proj", "o_proj"]),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}, ["c_attn"]),
}
VOCABULARY = [
    "<end>",
    "<unk>",
    "<start>",
    *"ABCDE",
    ":",
    ".",
    "?",
    "Question",
    "Answer",
    "with",
    "letter",
    "of",
    "right",
    "choice",
]
VOCABULARY += [word for word in WORDS if word not in VOCABULARY]
TEMPLATE = "{{ '<start> ' }}{% for message in messages %}{{ message['content'] }}{% endfor %}{{ ' <end> ' }}"


def choice_tokenizer(*, chat: bool = False, without: str = "") -> PreTrainedTokenizerFast:
    """A token for each word and each letter; no padding token, and maybe a chat template."""
    vocabulary = [word for word in VOCABULARY if word not in without]
    model = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>", unk_token="<unk>", bos_token="<start>")
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_base(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Save a tiny random language model and its tokenizer."""
    config, kind, sizes, _ = DECODERS[name]
    set_seed(0)
    tokens = {"vocab_size": len(VOCABULARY), "bos_token_id": 2, "eos_token_id": 0, "initializer_range": 0.3}
    getattr(transformers, kind)(getattr(transformers, config)(**sizes, **tokens)).save_pretrained(folder)
    (tokenizer or choice_tokenizer()).save_pretrained(folder)
    return folder


def language_model(name: str, folder: Path, **options) -> PeftModel:
    """A saved base with LoRA on its attention."""
    set_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.1, target_modules=DECODERS[name][3])
    return get_peft_model(base, lora)


def questions(count: int = 24) -> list[dict]:
    """Questions of 2 to 9 words, with 3 to 5 choices of 1 to 4 words."""
    generator = torch.Generator().manual_seed(0)

    def words(low: int, high: int) -> str:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return " ".join(WORDS[place] for place in torch.randint(len(WORDS), (length,), generator=generator).tolist())

    rows = []
    for index in range(count):
        choices = [words(1, 4) for _ in range(3 + index % 3)]
        rows.append({"question": words(2, 9), "choices": choices, "answer": index % len(choices)})
    return rows
