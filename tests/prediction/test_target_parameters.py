"""Adapters of single parameters (`LoraConfig(target_parameters=...)`)."""

import numpy as np
import pytest
import torch
from conftest import labelled, lora_model, trainer_for
from lively import lively
from transformers import pipeline

from swag_trainer import MonteCarloPredictor, SwagCallback
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.collector import SwagCollector


def test_an_adapter_of_single_parameters_answers_in_memory_and_after_loading(base_folder, texts, tokenizer, tmp_path):
    # Red for: PEFT's own writes in a forward taken for a change of the base; draws that do not reach the parameter.
    model = lora_model(base_folder, target_modules=[], target_parameters=["query.weight"], lora_dropout=0.0)
    swag = SwagCallback(rank=2)
    trainer_for(model, labelled(texts, tokenizer), tokenizer, tmp_path, callbacks=[swag], max_steps=8).train()
    posterior, rows = lively(swag.posterior), [dict(tokenizer(text)) for text in texts[:4]]
    predictor = MonteCarloPredictor(model.eval(), posterior, num_samples=3, progress=False)
    draws = [predictor.predict(rows, return_draws=True).draw_probabilities for _ in range(2)]
    np.testing.assert_array_equal(*draws)
    weights = AdapterWeights(model)
    for vector, found in zip(posterior.draw(3, seed=0).vectors, draws[0], strict=True):
        weights.write(weights.layout.unflatten(vector))
        with torch.no_grad():
            logits = torch.cat([model(**{name: torch.tensor([value]) for name, value in row.items()}).logits for row in rows])
        np.testing.assert_allclose(found, logits.double().softmax(-1), atol=1e-5)
    posterior.save_pretrained(tmp_path / "saved", dtype="float32")
    tokenizer.save_pretrained(tmp_path / "saved")
    served = pipeline("swag-text-classification", model=str(tmp_path / "saved"), device="cpu", num_samples=3)
    (answer,) = served(texts[0])
    assert answer["score"] == pytest.approx(draws[0].mean(0)[0].max(), abs=1e-5)


def test_patterns_beside_single_parameters_are_written_out_by_name(base_folder):
    # Red for: the rank of a parameter looked for under the name of its module (mixtures of experts with PEFT's own choice of layers were
    # refused), or a module of adapted parameters taken for an adapted module.
    patterns = {"target_modules": r".*\.key", "target_parameters": ["query.weight"], "rank_pattern": {r".*\.query\.weight": 2}}
    adapter = SwagCollector(lora_model(base_folder, lora_dropout=0.0, **patterns)).weights.saved()
    assert adapter.config["rank_pattern"] == {f"bert.encoder.layer.{n}.attention.self.query.weight": 2 for n in range(2)}
    assert adapter.config["target_modules"] == [f"bert.encoder.layer.{n}.attention.self.key" for n in range(2)]
