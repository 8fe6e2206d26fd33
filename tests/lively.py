"""A posterior whose answers differ from text to text; those of the tiny random BERT after 24 steps hardly do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import lora_model, trainer_for
from peft import PeftModel
from transformers import BertTokenizerFast, pipeline

from swag_trainer import SwagCallback, SwagPosterior, SwagTextClassificationPipeline
from swag_trainer.posterior.tuning import Tuning


def lively(posterior: SwagPosterior) -> SwagPosterior:
    """The posterior with a mean and deviations so large that the top label's score goes from 0.4 to 0.9 over the texts."""
    generator = torch.Generator().manual_seed(0)
    size = posterior.layout.size
    mean = 3 * torch.randn(size, generator=generator)
    deviations = 0.5 * torch.randn(posterior.rank, size, generator=generator)
    return replace(posterior, gaussian=replace(posterior.gaussian, mean=mean, directions=deviations))


def short_run(base_folder: Path, texts: list[str], folder: Path) -> tuple[PeftModel, SwagPosterior, BertTokenizerFast]:
    """A finished run for a whole file of tests: its model, its posterior made lively, and the tokenizer."""
    tokenizer, swag = BertTokenizerFast.from_pretrained(base_folder), SwagCallback(rank=5)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=[swag])
    trainer.train()
    return trainer.model.eval(), lively(swag.posterior), tokenizer


def tuning_of(**calibrated: Any) -> Tuning:
    """The record of a tuning on 60 + 61 rows of "me/questions", with 4 draws of seed 3 and temperature 1.25, and what it calibrated."""
    return Tuning(
        temperature=1.25,
        dataset="me/questions",
        num_examples=60,
        num_calibration=61,
        num_samples=4,
        seed=3,
        nll=0.5,
        **calibrated,
    )


def at_scale_2(posterior: SwagPosterior, tuning: Tuning | None) -> SwagPosterior:
    """The posterior as a tuning would have left it."""
    return replace(posterior, record=replace(posterior.record, scale=2.0, tuning=tuning))


def pipeline_of(run: tuple, *, tuning: Tuning | None = None, **options: Any) -> SwagTextClassificationPipeline:
    """The pipeline of a `short_run`, its posterior at scale 2."""
    model, posterior, tokenizer = run
    options = {"model": model, "tokenizer": tokenizer, "device": "cpu", **options}
    return pipeline("swag-text-classification", posterior=at_scale_2(posterior, tuning), **options)
