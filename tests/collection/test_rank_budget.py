"""AdaLoRA takes ranks away while it trains: the posterior is of all of them, from the step on at which they are final."""

import pytest
from conftest import trainer_for
from every_tuner import ADALORA, AllocateRanks
from peft import AdaLoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, pipeline, set_seed

from swag_trainer import Every, SwagCallback, SwagError, SwagPosterior, SwagTextClassificationPipeline, TooFewCollectionsError
from swag_trainer.collection.collector import SwagCollector


def adalora(base_folder, **settings):
    set_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    return get_peft_model(base, AdaLoraConfig(**ADALORA | settings))


def train(base_folder, rows, tokenizer, folder, swag, **settings):
    model = adalora(base_folder, **settings)
    trainer = trainer_for(model, rows, tokenizer, folder, callbacks=[swag, AllocateRanks()], max_steps=16)
    trainer.train()
    return trainer


def test_an_adapter_whose_ranks_shrank_answers_after_loading_as_in_memory(
    base_folder, rows, texts, tokenizer, tmp_path, caplog
):
    # Red for: A of shape (6, 32) in the posterior and (0, 32) in the file; snapshots from before the ranks were final.
    swag = SwagCallback(Every(steps=1), rank=4)
    trainer = train(base_folder, rows, tokenizer, tmp_path, swag)
    assert swag.posterior.collection.steps == list(range(10, 17))
    assert "ADALORA takes away ranks until step 10: the 5 collections before are left out, 7 remain" in caplog.text
    values = {key: weight for key, weight in swag.posterior.mean.items() if "lora_E" in key}
    assert sum(int((weight != 0).sum()) for weight in values.values()) <= 3 * len(values) < 6 * len(values)

    posterior = swag.posterior.stored_as("bfloat16")
    here = SwagTextClassificationPipeline(model=trainer.model.eval(), tokenizer=tokenizer, posterior=posterior, device="cpu")
    there = pipeline("swag-text-classification", model=str(tmp_path), device="cpu")
    expected, found = (
        [[row["score"] for row in rows] for rows in each(texts, top_k=None, scale=30.0)] for each in (here, there)
    )
    assert found == expected
    # What the Trainer saves now has every rank too, and so belongs to the posterior that lies there.
    trainer.save_model()
    SwagPosterior.from_pretrained(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == posterior.adapter.tensors.keys()


def test_a_run_that_ends_before_the_ranks_are_final_is_refused_before_the_first_step(base_folder, rows, tokenizer, tmp_path):
    # Red for: a run whose every snapshot is of other ranks, or that ends without a posterior.
    swag = SwagCallback()
    with pytest.raises(TooFewCollectionsError, match=r"ADALORA takes away ranks until step 94.*in a run of 16 steps"):
        train(base_folder, rows, tokenizer, tmp_path, swag, total_step=100)
    assert swag.num_collected == 0


def test_ranks_that_change_between_two_snapshots_are_noticed(base_folder):
    # Red for: a mean over snapshots of other ranks, where the weights are collected by hand.
    model = adalora(base_folder)
    collector, keys = (
        SwagCollector(model),
        [f"bert.encoder.layer.0.attention.self.{name}.lora_E.default" for name in ("query", "value")],
    )
    model.peft_config["default"].rank_pattern = {key: [True] * 6 for key in keys}
    collector.collect(step=1)
    model.peft_config["default"].rank_pattern = {key.removesuffix(".default"): [True] * 6 for key in keys}  # as PEFT leaves it
    collector.collect(step=2)
    model.peft_config["default"].rank_pattern = {key: [True] * 5 + [False] for key in keys}
    with pytest.raises(SwagError, match=r"At step 3 AdaLoRA took away ranks.*final at step 10"):
        collector.collect(step=3)
