"""A posterior whose answers differ from text to text; those of the tiny random BERT after 24 steps hardly do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from conftest import lora_model, trainer_for
from peft import PeftModel
from transformers import BertTokenizerFast

from swag_trainer import SwagCallback, SwagPosterior


def lively(posterior: SwagPosterior) -> SwagPosterior:
    """The posterior with a mean and deviations so large that the top label's score goes from 0.4 to 0.9 over the texts."""
    generator = torch.Generator().manual_seed(0)
    size = posterior.layout.size
    mean = 3 * torch.randn(size, generator=generator)
    deviations = 0.5 * torch.randn(posterior.rank, size, generator=generator)
    return replace(posterior, gaussian=replace(posterior.gaussian, mean=mean, deviations=deviations))


def short_run(base_folder: Path, texts: list[str], folder: Path) -> tuple[PeftModel, SwagPosterior, BertTokenizerFast]:
    """A finished run for a whole file of tests: its model, its posterior made lively, and the tokenizer."""
    tokenizer, swag = BertTokenizerFast.from_pretrained(base_folder), SwagCallback(rank=5)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=[swag])
    trainer.train()
    return trainer.model.eval(), lively(swag.posterior), tokenizer
