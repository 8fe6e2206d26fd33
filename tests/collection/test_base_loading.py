import logging

import pytest
from conftest import lora_model
from transformers import AutoModelForSequenceClassification, BertModel

from swag_trainer import SwagError
from swag_trainer.collection.base_loading import find_unsaved_modules, names_for_modules_to_save
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


def test_the_advice_names_modules_that_nothing_else_is_called_after(base_folder):
    # Red for: modules_to_save=["output"], which would train a layer of every block of the base.
    names = names_for_modules_to_save(lora_model(base_folder), "default", ["bert.pooler", "bert.encoder.layer.0.output"])
    assert names == ["pooler", "0.output", "classifier"]


def test_what_loading_reports_is_what_a_real_load_leaves_at_random(base_without_pooler, caplog):
    # Red for: another source than transformers' own loading; its report and its bar shown for a load that was not asked for.
    _, info = AutoModelForSequenceClassification.from_pretrained(base_without_pooler, output_loading_info=True)
    missing = {name for name in info["missing_keys"] if not name.startswith("classifier")}
    model = lora_model(base_without_pooler)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        modules = find_unsaved_modules(model, "default")
    assert missing and all(name.startswith(f"{modules[0]}.") for name in missing)
    assert "LOAD REPORT" not in caplog.text
