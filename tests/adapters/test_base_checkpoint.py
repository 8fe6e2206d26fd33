import pytest
from conftest import lora_model
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, BertModel

from swag_trainer import SwagError
from swag_trainer.adapters.base_checkpoint import find_other_shapes, find_unsaved_modules
from swag_trainer.collection.collector import SwagCollector


@pytest.fixture
def base_without_pooler(base_folder, tmp_path):
    """What a masked language model leaves on the Hub: no pooler, no head."""
    model = BertModel.from_pretrained(base_folder, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "no-pooler")
    return tmp_path / "no-pooler"


def test_a_pooler_that_no_file_holds_is_found(base_without_pooler):
    # Red for: looking at the head alone, which PEFT does save.
    assert find_unsaved_modules(lora_model(base_without_pooler), "default") == ["bert.pooler"]


def test_it_is_refused_before_training_with_the_cure(base_without_pooler):
    # Red for: an adapter whose answers differ at every load.
    with pytest.raises(SwagError, match=r"'bert\.pooler' is in neither.*modules_to_save=\['pooler', 'classifier'\]"):
        SwagCollector(lora_model(base_without_pooler))


def test_a_pooler_that_the_adapter_saves_is_fine(base_without_pooler):
    # Red for: comparing with the base's checkpoint alone.
    model = lora_model(base_without_pooler, modules_to_save=["classifier", "pooler"])
    assert find_unsaved_modules(model, "default") == []


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"target_modules": "all-linear"},
        {"target_modules": ["query", "word_embeddings"]},
        {"trainable_token_indices": {"word_embeddings": [5]}},
    ],
)
def test_a_complete_base_has_nothing_missing(base_folder, config):
    # Red for: PEFT's own names taken for modules of the base.
    assert find_unsaved_modules(lora_model(base_folder, **config), "default") == []


def test_an_unknown_base_checkpoint_proves_nothing(base_folder):
    # Red for: refusing a base that is not on this machine.
    model = lora_model(base_folder)
    model.peft_config["default"].base_model_name_or_path = "user/elsewhere"
    assert find_unsaved_modules(model, "default") == []


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
