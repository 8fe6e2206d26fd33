"""A tiny random language model and 64 questions, to see that all of the paper's protocol runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

WORDS = ["stone", "river", "cloud", "plant", "metal", "glass", "paper", "light", "sound", "water", "which", "word", "is"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def prepare(options: argparse.Namespace) -> None:
    """Write a model under --output, and questions whose right choice is the word that is asked for, and point the options at them."""
    folder = Path(options.output, "small-mode")
    vocabulary = ["<end>", "<unk>", *"ABCDE", "Question", "Answer", ":", ".", "?", *WORDS]
    model = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>", unk_token="<unk>").save_pretrained(folder)
    set_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), num_key_value_heads=4, **SIZES)).save_pretrained(folder)
    generator = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 12), ("shifted", 12)):
        rows = []
        for _ in range(count):
            choices = generator.choice(WORDS[:10], size=generator.integers(3, 6), replace=False).tolist()
            answer = int(generator.integers(len(choices)))
            rows.append({"question": f"which word is {choices[answer]} ?", "choices": choices, "answer": answer})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options.train, options.test = str(folder / "train.jsonl"), str(folder / "test.jsonl")
    options.shifted = [str(folder / "shifted.jsonl")]
    options.model, options.dtype, options.validation, options.steps = str(folder), "float32", 20, min(options.steps, 20)
