import pytest
from conftest import lora_model
from transformers import BertModel

from swag_trainer import SwagError
from swag_trainer.adapters.base_checkpoint import find_unsaved_modules
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
