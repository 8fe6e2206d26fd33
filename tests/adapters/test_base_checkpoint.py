import pytest
from conftest import lora_model
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, BertModel

from swag_trainer import SwagError
from swag_trainer.adapters.base_checkpoint import find_other_shapes
from swag_trainer.collection.collector import SwagCollector


def test_a_head_of_another_shape_is_refused_before_training_with_the_cure(base_folder):
    # Red for: names compared and shapes not: a head of three labels that is random at every load, as the checkpoint's has two.
    model = lora_model(base_folder, task_type=None)
    assert [(weight.name, weight.stored, weight.here) for weight in find_other_shapes(model, "default")] == [
        ("classifier.weight", (2, 32), (3, 32)),
        ("classifier.bias", (2,), (3,)),
    ]
    with pytest.raises(SwagError, match=r"'classifier.weight' has the shape \[3, 32\], and \[2, 32\].*task_type=\"SEQ_CLS\""):
        SwagCollector(model)
    assert find_other_shapes(lora_model(base_folder), "default") == []
    assert find_other_shapes(lora_model(base_folder, task_type=None, num_labels=2), "default") == []


def test_shapes_are_read_from_every_part_of_a_checkpoint_and_without_the_prefix(base_folder, tmp_path):
    # Red for: the first part alone, or names that a headless checkpoint spells without "bert.".
    model = BertModel.from_pretrained(base_folder)
    model.resize_token_embeddings(20)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    adapted = lora_model(base_folder)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path)
    found = find_other_shapes(adapted, "default")
    assert [(weight.name, weight.stored, weight.is_embedding) for weight in found] == [
        ("bert.embeddings.word_embeddings.weight", (20, 32), True)
    ]
    SwagCollector(adapted)  # PEFT saves these


def test_embeddings_that_transformers_would_not_save_are_refused(base_folder, tokenizer):
    # Red for: a native adapter, whose file has no embeddings, taken for one of PEFT's own.
    model = AutoModelForSequenceClassification.from_pretrained(base_folder)
    model.resize_token_embeddings(40)
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(SwagError, match=r"word_embeddings.weight' has the shape \[40, 32\]"):
        SwagCollector(model)
