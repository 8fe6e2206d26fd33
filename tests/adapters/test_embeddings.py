"""Added tokens: the base is resized as in the adapter's file, in every way that they are trained and saved."""

import pytest
import torch
from conftest import WORDS, labelled, trainer_for
from decoders import save_decoder
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline, set_seed

from swag_trainer import SwagCallback, SwagError, SwagTextClassificationPipeline
from swag_trainer.adapters.embeddings import resize_embeddings
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.posterior.saved_adapter import SavedAdapter

NEW = ["[USER]", "[URL]"]
TEXTS = ["[USER] a good film [URL]", "bad plot", "[URL] [URL] so long"]


def bert_with_new_tokens(base_folder, **config):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.add_tokens(NEW)
    set_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    base.resize_token_embeddings(len(tokenizer))
    settings = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query"]} | config
    return get_peft_model(base, LoraConfig(**settings)), tokenizer


def llama_with_padding(folder):
    save_decoder(folder, WORDS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    set_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    base.resize_token_embeddings(len(tokenizer))
    base.config.pad_token_id = tokenizer.pad_token_id
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])), tokenizer


def assert_loaded_as_in_memory(model, tokenizer, folder):
    swag = SwagCallback(rank=4)
    rows = labelled(TEXTS * 4, tokenizer)
    trainer_for(model, rows, tokenizer, folder, callbacks=[swag], max_steps=8).train()
    tokenizer.save_pretrained(folder)
    posterior = swag.posterior.stored_as("bfloat16")
    here = SwagTextClassificationPipeline(model=model.eval(), tokenizer=tokenizer, posterior=posterior, device="cpu")
    there = pipeline("swag-text-classification", model=str(folder), device="cpu")
    expected, found = (
        [[row["score"] for row in rows] for rows in each(TEXTS, top_k=None, scale=30.0)] for each in (here, there)
    )
    assert found == expected
    return there.model


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"modules_to_save": ["word_embeddings"]},
        {"trainable_token_indices": {"word_embeddings": [29, 30]}},
        {"target_modules": ["query", "word_embeddings"]},
    ],
    ids=["frozen", "saved as a whole", "trained alone", "with LoRA"],
)
def test_a_model_with_added_tokens_answers_after_loading_as_in_memory(base_folder, tmp_path, config):
    # Red for: a base with as many embeddings as its checkpoint; keys that PEFT writes and never reads; a Hub that was not asked.
    model, tokenizer = bert_with_new_tokens(base_folder, **config)
    vocabulary = len(tokenizer)
    loaded = assert_loaded_as_in_memory(model, tokenizer, tmp_path)
    assert loaded.get_input_embeddings().weight.shape[0] == vocabulary == 31
    # What PEFT itself saves beside the posterior afterwards still belongs to it.
    model.save_pretrained(tmp_path)
    pipeline("swag-text-classification", model=str(tmp_path), device="cpu")


def test_a_decoder_with_an_added_padding_token_answers_after_loading_as_in_memory(tmp_path):
    # Red for: a padding token that transformers looks up among the embeddings of the checkpoint.
    model, tokenizer = llama_with_padding(tmp_path / "base")
    loaded = assert_loaded_as_in_memory(model, tokenizer, tmp_path / "run")
    assert loaded.config.pad_token_id == tokenizer.pad_token_id == len(tokenizer) - 1


def test_resized_embeddings_are_saved_also_where_the_vocabulary_cannot_be_asked_for(base_folder, tmp_path):
    # Red for: PEFT's rule alone, which takes a base model without a config.json for one that was not resized.
    model, _ = bert_with_new_tokens(base_folder)
    (tmp_path / "model.safetensors").write_bytes((base_folder / "model.safetensors").read_bytes())
    model.peft_config["default"].base_model_name_or_path = str(tmp_path)
    tensors = AdapterWeights(model).saved().tensors
    assert tensors["base_model.model.bert.embeddings.word_embeddings.weight"].shape == (31, 32)


def test_a_plain_model_is_saved_without_its_embeddings(base_folder, tmp_path):
    # Red for: every adapter with the embeddings of all tokens.
    model, _ = bert_with_new_tokens(base_folder)
    model.base_model.model.resize_token_embeddings(29)
    model.save_pretrained(tmp_path)
    saved = AdapterWeights(model).saved().tensors
    assert set(saved) == set(load_file(tmp_path / "adapter_model.safetensors"))
    assert not any("embeddings" in key for key in saved)


def test_numbers_of_tokens_that_no_file_bears_out_are_refused(base_folder):
    # Red for: as much memory as a repository likes to name.
    base = AutoModelForSequenceClassification.from_pretrained(base_folder)
    with pytest.raises(SwagError, match=r"needs the token 100000000, the base model has 29 embeddings"):
        resize_embeddings(base, SavedAdapter({}, {}), pad_token_id=10**8)
    settings = {"trainable_token_indices": {"word_embeddings": [10**8]}}
    with pytest.raises(SwagError, match="needs the token 100000000"):
        resize_embeddings(base, SavedAdapter(settings, {}), pad_token_id=None)
    resize_embeddings(base, SavedAdapter({}, {"other": torch.zeros(99, 32)}), pad_token_id=29)
    assert base.get_input_embeddings().weight.shape == (30, 32)
