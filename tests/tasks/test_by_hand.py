"""Posteriors of models whose task has no predictor: collected, refused by the predictor with the way by hand, and that way works."""

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from trajectories import random_posterior
from transformers import BertConfig, set_seed

from swag_trainer import MonteCarloPredictor, SwagError
from swag_trainer.adapters.weights import private_copy
from swag_trainer.tasks.by_hand import BY_HAND, limits_of

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BATCH = {"input_ids": torch.arange(12).reshape(2, 6) + 3}


def base(class_name):
    set_seed(0)
    return getattr(transformers, class_name)(BertConfig(**SIZES))


def collected(class_name, task_type):
    model = get_peft_model(base(class_name), LoraConfig(task_type=task_type, r=2, init_lora_weights=False))
    return model.eval(), random_posterior(model)


@pytest.mark.parametrize(
    ("class_name", "task_type", "purpose"),
    [
        ("BertForMaskedLM", None, "masked language modelling"),
        ("BertModel", "FEATURE_EXTRACTION", "embeddings"),
    ],
)
def test_a_task_without_a_predictor_is_refused_by_name_with_the_way_by_hand(class_name, task_type, purpose):
    # Red for: a KeyError of the outputs, or the start positions of an answer averaged as if they were classes.
    model, posterior = collected(class_name, task_type)
    with pytest.raises(SwagError, match=f"is for {purpose}.*'swag-text-classification'.*posterior.sample"):
        MonteCarloPredictor(model, posterior)
    limits = limits_of(model.get_base_model())
    assert limits is not None and purpose in limits and BY_HAND in limits


def test_the_way_by_hand_averages_the_predictions_of_the_draws():
    # Red for: advice with keys that plain PEFT does not take, or with other draws than the predictor's.
    model, posterior = collected("BertForMaskedLM", None)
    draws = posterior.draw(10, seed=0).vectors
    copy, logits = private_copy(model, None, posterior.layout.keys), []
    for draw in draws:
        copy.write(posterior.layout.unflatten(draw))
        with torch.no_grad():
            logits.append(copy.model(**BATCH).logits)
    expected = torch.stack(logits)
    names = {"posterior": posterior, "model": model, "peft": peft}
    sample, load = BY_HAND.partition("; then, for each draw i, ")[::2]
    exec(sample, names)
    average = 0
    with torch.no_grad():
        for i in range(10):
            loaded = eval(load.partition(", the model")[0], names | {"i": i, "weights": names["weights"]})
            assert not loaded.unexpected_keys
            average = average + model(**BATCH).logits.softmax(-1) / 10
    torch.testing.assert_close(average, expected.softmax(-1).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("BertForSequenceClassification", None),
        ("GPT2LMHeadModel", None),
        ("ViTForImageClassification", None),
        ("ASTForAudioClassification", "no pipeline"),
    ],
)
def test_what_has_a_pipeline_is_not_mentioned_and_sounds_are_only_without_one(class_name, expected):
    # Red for: a warning before every training; a predictor that works called impossible.
    with torch.device("meta"):
        config = class_name.partition("For")[0].removesuffix("LMHeadModel") + "Config"
        model = getattr(transformers, class_name)(getattr(transformers, config)())
    limits = limits_of(model)
    assert limits is None if expected is None else expected in limits and "MonteCarloPredictor" in limits
