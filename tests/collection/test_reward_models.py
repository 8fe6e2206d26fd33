"""Heads with one number: TRL's RewardTrainer and sentence-transformers' CrossEncoder, from training to the pipeline."""

import numpy as np
import pytest
import torch
from conftest import WORDS
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
    set_seed,
)

from hub_cards import build_card
from swag_trainer import SwagCallback, SwagError, tune

QUIET = {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 0, "save_strategy": "no"}
ARGUMENTS = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 2e-2, **QUIET}


def words_tokenizer():
    """A token for each word, with an end of the text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: place for place, word in enumerate(["<pad>", "<unk>", "<end>", *WORDS])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", unk_token="<unk>", eos_token="<end>")


@pytest.mark.slow
def test_a_reward_model_of_trl_gives_rewards_with_their_standard_deviation(texts, tmp_path):
    # Red for: a reward that comes back as a probability, a head of the base in the place of the trained one, a spread of no draws.
    trl = pytest.importorskip("trl", reason="RewardTrainer is TRL's")
    tokenizer, base = words_tokenizer(), tmp_path / "base"
    set_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2, bos_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    swag = SwagCallback(rank=4)
    pairs = Dataset.from_dict({"chosen": [f"good {text}" for text in texts], "rejected": [f"bad {text}" for text in texts]})
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, problem_type="regression"),
        args=trl.RewardConfig(str(tmp_path / "run"), bf16=False, use_cpu=True, max_length=32, **ARGUMENTS),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"]),
        callbacks=[swag],
    )
    trainer.train()
    score = pipeline("swag-text-classification", model=str(tmp_path / "run"), num_samples=4, device="cpu")
    asked = [f"{word} {text}<end>" for word in ("good", "bad") for text in texts[:4]]
    found = score(asked)
    assert all(set(one) == {"label", "score", "std"} and one["std"] > 0 for one in found)
    rewards = np.array([one["score"] for one in found])
    assert (rewards[:4] > rewards[4:]).all() and rewards.min() < 0 and len(set(rewards)) == 8
    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "run", num_labels=1).eval()
    with torch.no_grad():
        own = [float(plain(**tokenizer(text, return_tensors="pt")).logits) for text in asked]
    np.testing.assert_allclose([one["score"] for one in score(asked, scale=0, num_samples=1)], own, atol=1e-5)
    assert swag.posterior.record.problem_type == "regression"
    card = str(build_card(swag.posterior, repo_id="user/reward"))
    assert 'problem_type="regression"' in card and "standard deviation `std`" in card and "mutual_information" not in card
    with pytest.raises(SwagError, match="plain numbers"):
        score(asked[0], abstain_below=0.5)
    with pytest.raises(SwagError, match="a regression"):
        tune(swag.posterior, trainer.model, [{**tokenizer(text), "labels": 0} for text in asked])


@pytest.mark.slow
def test_a_cross_encoder_keeps_its_trained_head(base_folder, texts, tmp_path):
    # Red for: a head that is random after loading, another activation than CrossEncoder's own, pairs that are read as one text.
    st = pytest.importorskip("sentence_transformers", reason="CrossEncoder is sentence-transformers'")
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    set_seed(0)
    model = st.CrossEncoder(str(base_folder), num_labels=1, device="cpu", model_kwargs={"ignore_mismatched_sizes": True})
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
    model.add_adapter(lora)
    swag = SwagCallback(rank=4)
    labels = [float(index % 2) for index in range(len(texts))]
    data = Dataset.from_dict({"query": texts, "answer": list(reversed(texts)), "label": labels})
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(str(tmp_path / "run"), **ARGUMENTS),
        train_dataset=data,
        loss=BinaryCrossEntropyLoss(model),
        callbacks=[swag],
    )
    trainer.train()
    rank = pipeline("swag-text-classification", model=str(tmp_path / "run"), num_samples=4, device="cpu")
    pairs = list(zip(texts[:6], reversed(texts[-6:]), strict=True))
    asked = [{"text": query, "text_pair": answer} for query, answer in pairs]
    raw = rank(asked, function_to_apply="none", top_k=1)
    assert all(one[0]["std"] > 0 for one in raw) if isinstance(raw[0], list) else all(one["std"] > 0 for one in raw)
    inner = model[0].auto_model if hasattr(model[0], "auto_model") else model[0].model
    weights = dict(swag.posterior.mean)
    with torch.no_grad():
        for name, parameter in inner.named_parameters():
            key = f"base_model.model.{name}".replace(".default", "").replace(".modules_to_save", "")
            if key in weights and (".modules_to_save." in name or "lora_" in name):
                parameter.copy_(weights.pop(key))
    assert not weights
    own = model.predict(pairs)
    found = rank(asked, scale=0, num_samples=1, top_k=1)
    flat = [one[0] if isinstance(one, list) else one for one in found]
    np.testing.assert_allclose([one["score"] for one in flat], own, atol=1e-5)
    assert np.ptp(own) > 1e-4
