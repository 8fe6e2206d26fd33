"""A new task is one class: here token classification, whose events are the attended tokens of a text."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import trainer_for
from lively import lively
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, pipeline, set_seed

from swag_trainer import MonteCarloPredictor, SwagCallback, SwagError, load_posterior
from swag_trainer.prediction.loading import AutoSwagModel
from swag_trainer.prediction.pipelines.base import PosteriorPipeline
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks import task_named
from swag_trainer.tasks.base import Task


class Tokens(Task):
    name, hub_tag, auto_model = "swag-test-tokens", "token-classification", AutoModelForTokenClassification

    def events(self, batch):
        return batch["attention_mask"].nonzero()[:, 0].cpu()

    def read(self, outputs, batch):
        return outputs["logits"][batch["attention_mask"].bool()]

    def link(self, config):
        return "softmax"

    def labels(self, rows, num_labels):
        return np.concatenate([row["labels"] for row in rows])


class TokensPipeline(PosteriorPipeline):
    swag_task = Tokens.name

    def preprocess(self, inputs, **tokenizer):
        return self.tokenizer(inputs, return_tensors="pt", **tokenizer)

    def postprocess(self, model_outputs, options):
        return self.predictive_of(model_outputs).probabilities


register_pipeline(TokensPipeline, type("AutoSwagModelForTokens", (AutoSwagModel,), {"task_name": Tokens.name}))


@pytest.fixture
def run(base_folder, texts, tokenizer, tmp_path):
    set_seed(0)
    base = Tokens.auto_model.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    rows = [{**tokenizer(text), "labels": [token % 3 for token in tokenizer(text)["input_ids"]]} for text in texts]
    model, swag = get_peft_model(base, LoraConfig(task_type="TOKEN_CLS", target_modules=["query", "value"])), SwagCallback()
    trainer = trainer_for(model, rows, tokenizer, tmp_path, callbacks=[swag])
    trainer.data_collator = DataCollatorForTokenClassification(tokenizer)
    trainer.train()
    posterior = lively(swag.posterior)
    return model.eval(), replace(posterior, record=replace(posterior.record, task=Tokens.name)), rows


def test_tokens_are_predicted_saved_and_served(run, texts, tmp_path):
    # Red for: events in the order of the batches, a packed forward that reads rows for events, a task that a file forgets.
    model, posterior, rows = run
    predictor = MonteCarloPredictor(model, posterior, batch_size=5, progress=False)
    packed = predictor.predict(rows).probabilities
    assert predictor._logits.sampler.obstacle is None and packed.shape == (sum(len(row["input_ids"]) for row in rows), 3)
    predictor._logits.sampler._give_up("to see the plain path")
    np.testing.assert_allclose(predictor.predict(rows).probabilities, packed, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([predictor.predict([row]).probabilities for row in rows]), packed, rtol=0, atol=1e-5
    )
    posterior.save_pretrained(tmp_path / "saved", dtype="float32")
    assert load_posterior(tmp_path / "saved").record.task == Tokens.name
    served = pipeline(Tokens.name, model=str(tmp_path / "saved"), device="cpu")(texts, batch_size=5)
    np.testing.assert_allclose(np.concatenate(served), packed, rtol=0, atol=1e-5)
    with pytest.raises(SwagError, match="needs C logits for each of the 1 events.*Supported tasks: .*posterior.sample"):
        MonteCarloPredictor(model, posterior, task=task_named(None)).predict(rows[:1])
