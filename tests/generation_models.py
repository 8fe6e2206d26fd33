"""Tiny random language models with a posterior whose draws differ, and the plain loop over draws."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from choices import DECODERS, save_base
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from trajectories import random_posterior
from transformers import set_seed

from swag_trainer import SwagPosterior
from swag_trainer.adapters.weights import private_copy


def language_posterior(name: str, folder: Path, **lora) -> tuple[PeftModel, SwagPosterior]:
    """A model of `DECODERS` with LoRA, and a posterior of five random snapshots of it."""
    save_base(name, folder)
    set_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": DECODERS[name][3]} | lora
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings))
    return model.eval(), posterior_of(model)


def posterior_of(model: PeftModel) -> SwagPosterior:
    """A posterior of five random snapshots of a model's adapter."""
    return random_posterior(model, snapshots=5, rank=3, spread=0.2)


def mean_model(model: PeftModel, posterior: SwagPosterior) -> PeftModel:
    """A copy of the model at the posterior's mean."""
    weights = private_copy(model, None, posterior.layout.keys)
    weights.write(posterior.layout.unflatten(posterior.mean_vector()))
    return weights.model


def log_probabilities(model: PeftModel, posterior: SwagPosterior, ids: Tensor, *, num_samples: int = 3) -> Tensor:
    """Of the next token at each place, under each draw: one forward of the whole text for each. Shape (S, B, T, V)."""
    weights, logits = private_copy(model, None, posterior.layout.keys), []
    for draw in posterior.draw(num_samples, seed=0).vectors:
        weights.write(posterior.layout.unflatten(draw))
        with torch.no_grad():
            logits.append(weights.model(input_ids=ids).logits)
    return torch.stack(logits).double().log_softmax(-1)
