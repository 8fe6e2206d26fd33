"""A tiny base model without a head, as all-MiniLM has none: the examples give it one of as many classes as their data has."""

from __future__ import annotations

from pathlib import Path

from transformers import BertModel, BertTokenizerFast


def headless_base(base_folder: Path, folder: Path) -> str:
    """Write the tiny BERT without its classifier, and its tokenizer, into a folder."""
    BertModel.from_pretrained(base_folder).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(base_folder).save_pretrained(folder)
    return str(folder)
