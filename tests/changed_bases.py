"""Adapters whose initialisation changes the base, on a base whose answers depend on it."""

import torch
from conftest import trainer_for
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    set_seed,
)

from swag_trainer import SwagCallback

REPRODUCIBLE = ["olora", "pissa"]
OTHERS = ["pissa_niter_4", "corda", "lora_ga"]
INPUT_IDS = torch.randint(5, 28, (6, 9), generator=torch.Generator().manual_seed(0))


def lively_base(base_folder, folder):
    """The tiny BERT with weights so large that another query matrix gives other answers: 0.02 would hide everything below 1e-3."""
    config = BertConfig.from_pretrained(base_folder, initializer_range=0.3)
    set_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(base_folder).save_pretrained(folder)
    return folder


def load_base(folder, **arguments):
    set_seed(0)  # for the head, which the checkpoint has for other classes
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True, **arguments
    ).eval()


def adapter_on(base, initialisation, *, seed=0, **config):
    """Put an adapter on a base model with the preparation its initialisation asks for; the seed is set before."""
    settings = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]} | config
    if initialisation == "corda":
        settings["corda_config"] = CordaConfig(corda_method="kpm")
    if initialisation == "lora_ga":
        settings["lora_ga_config"] = LoraGAConfig()
    lora = LoraConfig(init_lora_weights=initialisation, **settings)
    set_seed(seed)
    if initialisation == "corda":
        preprocess_corda(base, lora, run_model=lambda: [base(row[None]) for row in INPUT_IDS])
    if initialisation == "lora_ga":
        # The gradient is multiplied: of its own it is so small that the change of the base would not matter.
        preprocess_loraga(base, lora, lambda: (10 * base(INPUT_IDS, labels=torch.arange(6) % 3).loss).backward())
    return get_peft_model(base, lora).eval()


def query_weight(model):
    """A weight that every adapter here wraps."""
    query = model.get_base_model().bert.encoder.layer[0].attention.self.query
    return query.get_base_layer().weight.detach()


def answers(model):
    with torch.no_grad():
        return model.eval()(INPUT_IDS).logits


def trained_with_swag(model, rows, tokenizer, folder, **arguments):
    """A finished run: (trainer, posterior, A0 and B0). The adapter of the trainer's model holds the mean."""
    swag = SwagCallback(rank=4)
    arguments = {"max_steps": 8, "learning_rate": 3e-2} | arguments
    trainer = trainer_for(model, rows, tokenizer, folder, callbacks=[swag], **arguments)
    trainer.train()
    return trainer, swag.posterior, swag.posterior.adapter.initial
