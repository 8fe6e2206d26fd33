"""Posteriors of random snapshots for tasks other than text classification: images, multiple choice, zero-shot classification."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from conftest import lora_model
from peft import LoraConfig, get_peft_model
from trajectories import random_posterior
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertModel,
    BertTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "initializer_range": 0.3}


def collect(base, folder, preprocessor, **lora):
    """Save a base and a posterior of random snapshots of an adapter on it: the folder of the adapter."""
    base.save_pretrained(folder / "base")
    preprocessor.save_pretrained(folder / "base")
    settings = {"r": 2, "target_modules": ["query", "value", "q_proj", "v_proj"], "init_lora_weights": False} | lora
    model = get_peft_model(type(base).from_pretrained(folder / "base"), LoraConfig(**settings))
    random_posterior(model, spread=0.3).save_pretrained(folder / "run")
    return str(folder / "run")


def save_posteriors(base_folder: Path, place: Path) -> SimpleNamespace:
    """Save posteriors of a ViT, of an encoder for multiple choice, of a BERT without a head, and of a classifier of NLI: their folders."""
    set_seed(0)
    tokenizer = BertTokenizerFast.from_pretrained(base_folder)
    vit = ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3))
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    bert = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES)
    nli = lora_model(base_folder).get_base_model()
    names = ["contradiction", "neutral", "entailment"]
    nli.config.id2label, nli.config.label2id = dict(enumerate(names)), {name: place for place, name in enumerate(names)}
    plain = type(nli)(nli.config)
    head = {"modules_to_save": ["classifier"]}
    return SimpleNamespace(
        images=collect(vit, place / "vit", processor, **head),
        questions=collect(BertForMultipleChoice(bert), place / "choice", tokenizer, **head),
        bare=collect(BertModel(bert), place / "bare", tokenizer),
        nli=collect(plain, place / "nli", tokenizer, task_type="SEQ_CLS"),
        place=place,
    )
