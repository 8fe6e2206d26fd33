"""Every kind of adapter goes the whole way: trained, saved, loaded by its folder's name, answering as in memory."""

import pytest
from adapter_kinds import ADAPTERS, model_with
from conftest import trainer_for
from transformers import pipeline

from swag_trainer import SwagCallback, SwagTextClassificationPipeline


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_any_kind_answers_after_loading_as_in_memory(base_folder, rows, texts, tokenizer, tmp_path, name):
    # Red for: a tensor that is not in the posterior and not in the adapter's file either, or a base changed twice (OLoRA).
    swag = SwagCallback(rank=4)
    trainer = trainer_for(model_with(base_folder, name), rows, tokenizer, tmp_path, callbacks=[swag], max_steps=8)
    trainer.train()
    here = SwagTextClassificationPipeline(
        model=trainer.model.eval(),
        tokenizer=tokenizer,
        posterior=swag.posterior.stored_as("bfloat16"),
        scale=10.0,
        device="cpu",
    )
    there = pipeline("swag-text-classification", model=str(tmp_path), scale=10.0, device="cpu")
    expected, found = here(texts[:4], top_k=None), there(texts[:4], top_k=None)
    assert found == [
        [{**row, "label": there.model.config.id2label[here.model.config.label2id[row["label"]]]} for row in answers]
        for answers in expected
    ]
    assert max(row["mutual_information"] for answers in found for row in answers) > 1e-6
