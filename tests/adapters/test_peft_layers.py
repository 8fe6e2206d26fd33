"""What swag_trainer assumes about PEFT's layers. A failure here means that PEFT or transformers moved a name: see peft_layers.py."""

import ast
from pathlib import Path

import pytest
import torch
from adapter_kinds import model_with
from conftest import lora_model
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

import swag_trainer
from swag_trainer.adapters.peft_layers import (
    ModulesToSaveWrapper,
    adapter_layers,
    base_layer,
    base_name,
    base_weight,
    copies,
    inserted_modules,
    is_adapted,
    is_disabled,
    is_merged,
    lora_layers,
    lora_obstacle,
    original_module,
)

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
HEAD = "base_model.model.classifier"


def imported_by(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_other_file_imports_from_inside_peft():
    # Red for: a second place to mend when PEFT moves a layer.
    root = Path(swag_trainer.__file__).parent
    importing = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if any(name.startswith("peft.") for name in imported_by(path))
    }
    assert importing == {"adapters/peft_layers.py"}


def test_models_with_an_adapter_are_recognised_both_ways(base_folder):
    # Red for: another name of the flag that transformers sets in add_adapter.
    model = AutoModelForSequenceClassification.from_pretrained(base_folder)
    assert not is_adapted(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    assert is_adapted(model) and is_adapted(lora_model(base_folder))


def test_layers_are_found_with_what_was_put_beside_and_in_the_place_of_the_base(base_folder):
    # Red for: another name of the base's own module, a copy or an original that is the other one.
    model = lora_model(base_folder)
    layers = dict(adapter_layers(model))
    assert {QUERY, HEAD} < set(layers) and len(layers) == 5
    assert set(dict(lora_layers(model, "default"))) == set(layers) - {HEAD} and not dict(lora_layers(model, "other"))
    inside = {name.split(".")[0] for name, _ in layers[QUERY].named_parameters()}
    assert {"lora_A", "lora_B"} < set(inserted_modules(layers[QUERY])) and inside - set(inserted_modules(layers[QUERY])) == {
        "base_layer"
    }
    assert base_name(f"{QUERY}.base_layer.weight") == "bert.encoder.layer.0.attention.self.query.weight"
    assert base_weight(layers[QUERY]) is base_layer(layers[QUERY]).weight
    assert isinstance(layers[HEAD], ModulesToSaveWrapper) and set(copies(layers[HEAD])) == {"default"}
    assert copies(layers[HEAD])["default"].weight.requires_grad and not original_module(layers[HEAD]).weight.requires_grad


def test_layers_know_whether_they_are_merged_or_switched_off(base_folder):
    # Red for: another name of the state, which a getattr with a default would take for False.
    model = lora_model(base_folder)
    query, head = model.get_submodule(QUERY), model.get_submodule(HEAD)
    assert not any(state(layer) for state in (is_merged, is_disabled) for layer in (query, head))
    model.merge_adapter()
    assert is_merged(query)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert is_disabled(query) and is_disabled(head)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("lora", {}, None),
        ("dora", {}, "more than B A x"),
        (None, {"lora_bias": True}, "more than B A x"),
        (None, {"target_modules": ["query", "word_embeddings"]}, "is a peft.tuners.lora.layer.Embedding"),
    ],
)
def test_lora_that_is_more_than_two_matrices_is_recognised(base_folder, name, config, expected):
    # Red for: another name of DoRA's or the bias's setting, or of the layer's class: such draws would be packed as plain LoRA.
    model = model_with(base_folder, name) if name else lora_model(base_folder, **config)
    reasons = {lora_obstacle(layer, "default") for _, layer in lora_layers(model, "default")}
    if expected is None:
        assert reasons == {None}
    else:
        assert any(expected in reason for reason in reasons if reason)


def test_another_dropout_than_torchs_own_is_recognised(base_folder):
    # Red for: another name of the dropouts: a noise that evaluation mode does not switch off would be taken for none.
    layer = lora_model(base_folder).get_submodule(QUERY)
    layer.lora_dropout["default"] = torch.nn.AlphaDropout(0.1)
    assert lora_obstacle(layer, "default") == "has a dropout of type AlphaDropout"
