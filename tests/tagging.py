"""A tiny random BERT for token classification whose tokenizer cuts words, and rows for it as the usual script of transformers makes them."""

from __future__ import annotations

from pathlib import Path

from conftest import WORDS, trainer_for
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertForTokenClassification,
    BertTokenizerFast,
    DataCollatorForTokenClassification,
    Trainer,
    set_seed,
)

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = [
    "the goodly film was slow",
    "a badly dull plot and quite good castes but very short, short",
    "good",
    "sadly the longest plot was not so bright and the cast was very very dull and funny",
    "great greatest film",
    "so short the plot",
]


def save_tagger(folder: Path) -> Path:
    """Write the base model with its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *WORDS, "##ly", "##es", "##est", "##t"]
    vocabulary = {word: index for index, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=24).save_pretrained(folder)
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(words), max_position_embeddings=24, id2label=dict(enumerate(TAGS)), num_labels=len(TAGS), **sizes
    )
    BertForTokenClassification(config).save_pretrained(folder)
    return folder


def tagger(base: str | Path) -> PeftModel:
    """A PEFT model on the base."""
    set_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(base)
    return get_peft_model(model, LoraConfig(task_type="TOKEN_CLS", r=4, target_modules=["query", "value"]))


def tagged(texts: list[str], tokenizer: BertTokenizerFast) -> list[dict]:
    """Texts whose tokens have labels, but for special tokens and for all but the first token of a word."""
    rows = []
    for text in texts:
        row = dict(tokenizer(text))
        words = tokenizer(text).word_ids()
        starts = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
        tags = [token % len(TAGS) if start else -100 for token, start in zip(row["input_ids"], starts, strict=True)]
        rows.append({**row, "labels": tags})
    return rows


def tagging_trainer(model: PeftModel, rows: list, tokenizer: BertTokenizerFast, folder: Path, **arguments) -> Trainer:
    """A Trainer that takes 12 steps of 4 texts."""
    trainer = trainer_for(model, rows, tokenizer, folder, **{"max_steps": 12, **arguments})
    trainer.data_collator = DataCollatorForTokenClassification(tokenizer)
    return trainer
