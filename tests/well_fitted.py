"""A classifier that fits its examples well, trained without a posterior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import lora_model, trainer_for
from transformers import BertTokenizerFast

from swag_trainer.adapters.weights import AdapterWeights


def well_fitted(base: Path, texts: list[str], folder: Path) -> tuple[Any, Any, list[dict]]:
    """Return a model that was trained by plain Trainer and PEFT, its tokenizer, and examples with the labels that it predicts."""
    tokenizer = BertTokenizerFast.from_pretrained(base)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    trainer = trainer_for(lora_model(base), rows, tokenizer, folder)
    trainer.train()
    model = trainer.model.eval()
    generator = torch.Generator().manual_seed(0)
    weights = AdapterWeights(model)
    weights.write({key: value + torch.randn(value.shape, generator=generator) for key, value in weights.read().items()})
    plain = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
    logits = [model(**{k: torch.tensor([v]) for k, v in row.items()}).logits.detach() for row in plain]
    labels = torch.cat(logits).argmax(1).tolist()
    return model, tokenizer, [{**row, "labels": label} for row, label in zip(plain, labels, strict=True)]
