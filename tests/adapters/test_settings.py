"""What PEFT gets of the settings of an untrusted adapter."""

import re

import pytest
import torch
from conftest import lora_model
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForSequenceClassification

from swag_trainer.adapters.settings import loadable_settings, without_patterns
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import PosteriorFormatError, SwagError
from swag_trainer.posterior.saved_adapter import SavedAdapter

BOMB = r"(a|a?)+(.*.*)+\1$"
QUERY = "bert.encoder.layer.{}.attention.self.query"


def adapter_of(model) -> SavedAdapter:
    """The adapter as PEFT writes it, patterns included."""
    config = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in model.peft_config["default"].to_dict().items()
    }
    config |= {name: str(getattr(config[name], "value", config[name])) for name in ("peft_type", "task_type")}
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return SavedAdapter(config, {key: tensor.detach().clone() for key, tensor in tensors.items()})


@pytest.fixture
def adapter(base_folder):
    return adapter_of(lora_model(base_folder))


def changed(adapter, **settings):
    return SavedAdapter({**adapter.config, **settings}, adapter.tensors)


def scalings_of(model):
    modules = dict(model.named_modules())
    return {
        name: modules[name].scaling["default"] for name in modules if isinstance(getattr(modules[name], "scaling", None), dict)
    }


def loaded(base_folder, config, tensors):
    """The LoRA layers' ranks and scalings of a model that PEFT makes of these settings."""
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    model = get_peft_model(base, PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]](**config))
    found = {key: tuple(tensor.shape) for key, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    assert found == {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return scalings_of(model)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": BOMB},
        {"exclude_modules": BOMB},
        {"layers_pattern": BOMB, "layers_to_transform": [0, 1]},
        {"layers_pattern": ["encoder", BOMB], "layers_to_transform": [0, 1]},
        {"rank_pattern": {BOMB: 4}},
    ],
)
def test_a_pattern_that_never_ends_is_replaced_by_what_the_tensors_say(base_folder, adapter, settings, monkeypatch):
    # Red for: a pattern of the file that reaches re.
    config = loadable_settings(changed(adapter, **settings), name="here")
    reached = []
    for name in ("match", "fullmatch", "search"):
        real = getattr(re, name)
        monkeypatch.setattr(re, name, lambda pattern, *rest, real=real: reached.append(str(pattern)) or real(pattern, *rest))
    scalings = loaded(base_folder, config, adapter.tensors)
    assert len(scalings) == 4 and set(scalings.values()) == {2.0}
    assert not [pattern for pattern in reached if BOMB in pattern]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha_pattern": {BOMB: 4}}, "alpha_pattern with the pattern"),
        ({"modules_to_save": ["classifier", BOMB]}, "modules_to_save with the pattern"),
        ({"target_modules": ["query", "value", BOMB, "x"], "init_lora_weights": BOMB}, "init_lora_weights with the pattern"),
        ({"trainable_token_indices": {BOMB: [1]}}, "trainable_token_indices with the pattern"),
    ],
)
def test_a_pattern_that_nothing_replaces_is_refused_by_its_setting(adapter, settings, words):
    # Red for: a hang, or a pattern read as a name.
    with pytest.raises(PosteriorFormatError, match=f"of 'here' states {words}.*block the process for ever"):
        loadable_settings(changed(adapter, **settings), name="here")


@pytest.mark.parametrize(
    ("patterns", "alphas"),
    [
        ({}, {}),
        ({"query": 2}, {"layer.1.attention.self.value": 3}),
        ({rf"^{QUERY.format(0)}$": 2}, {r"0\.attention\.self\.query": 5, "query": 7}),
        ({r"encoder\.layer\.1\..*": 2}, {}),
    ],
)
def test_ranks_and_scalings_are_those_of_plain_peft(base_folder, patterns, alphas):
    # Red for: a suffix taken for a whole name, the last of two keys that match, an escape that PEFT takes for another name.
    model = lora_model(base_folder, rank_pattern=patterns, alpha_pattern=alphas)
    adapter = adapter_of(model)
    config = loadable_settings(adapter, name="here")
    assert all(re.fullmatch(r"(\w|\\\.)+", key) for name in ("rank_pattern", "alpha_pattern") for key in config[name])
    expected = scalings_of(model)
    assert loaded(base_folder, config, adapter.tensors) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 3_000_000}, "asks for the rank 3000000 in '.*', whose tensors have the rank 4|states r=3000000"),
        ({"rank_pattern": {"query": 3_000_000}}, "3000000"),
        ({"rank_pattern": {"query": "4"}}, "rank '4' in"),
        ({"lora_alpha": 1e300}, "lora_alpha=1e"),
        ({"alpha_pattern": {"query": "8"}}, "alpha_pattern with '8'"),
        ({"alpha_pattern": {"query": 1e300}}, "alpha_pattern=1e"),
        ({"target_modules": ["query", "value", *map(str, range(1000))]}, "target_modules with 1002 entries"),
        ({"loftq_config": {"loftq_bits": 10**12}}, "loftq_config="),
        ({"peft_type": "NEWS"}, "peft_type='NEWS', a kind of adapter that this version of PEFT does not have"),
        ({"news": 3}, "'news', which this version of PEFT does not know"),
    ],
)
def test_a_setting_that_asks_for_more_than_the_tensors_have_is_refused(adapter, settings, words):
    # Red for: 5.9 GB for a toy model, an error of PEFT's own, a prediction that is not finite.
    with pytest.raises(PosteriorFormatError, match=words):
        loadable_settings(changed(adapter, **settings), name="here")


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "XLORA", "SHADOW"])
def test_kinds_that_are_not_supported_are_refused_before_anything_is_loaded(adapter, kind):
    # Red for: other adapters or models loaded by names in the file.
    with pytest.raises(SwagError, match=f"{kind}.*not supported"):
        loadable_settings(changed(adapter, peft_type=kind), name="here")


def test_settings_that_are_not_needed_to_load_do_not_reach_peft(adapter):
    # Red for: an import of a module that the file names; a key of a newer PEFT that is not set taken for a change.
    config = loadable_settings(changed(adapter, auto_mapping={"a": "b"}, megatron_core="evil", news=None), name="here")
    assert not {"auto_mapping", "megatron_core", "news"} & set(config)


def test_a_model_of_ones_own_is_saved_with_names_in_the_place_of_patterns(base_folder):
    # Red for: a run that ends well, and a folder that is refused when it is loaded.
    model = lora_model(base_folder, alpha_pattern={r"layer\.(0|7)\..*query": 3, "value": 5})
    saved = AdapterWeights(model).saved()
    assert saved.config["alpha_pattern"] == {
        QUERY.format(0): 3,
        **{QUERY.format(layer).replace("query", "value"): 5 for layer in (0, 1)},
    }
    expected = scalings_of(model)
    assert loaded(base_folder, loadable_settings(saved, name="here"), saved.tensors) == expected


def test_patterns_of_other_kinds_are_written_out_too(base_folder):
    # Red for: a setting of IA3, or of the LoHa family, forgotten.
    def model_with(config):
        base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
        return get_peft_model(base, config)

    ia3 = model_with(
        IA3Config(task_type="SEQ_CLS", target_modules=r".*(query|output\.dense)", feedforward_modules=r".*output\.dense")
    )
    written = without_patterns(adapter_of(ia3).config, ia3, "default")
    assert len(written["feedforward_modules"]) == 4 and all(
        name.endswith("output.dense") for name in written["feedforward_modules"]
    )
    loha = model_with(LoHaConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], rank_pattern={r"layer\.\d+\..*": 2}))
    adapter = adapter_of(loha)
    written = without_patterns(adapter.config, loha, "default")
    assert written["rank_pattern"] == {QUERY.format(layer): 2 for layer in (0, 1)}
    loaded(base_folder, loadable_settings(SavedAdapter(written, adapter.tensors), name="here"), adapter.tensors)


def test_plain_settings_reach_peft_as_they_are(base_folder):
    # Red for: settings rewritten where nothing asks for it.
    model = lora_model(base_folder, layers_to_transform=[1], layers_pattern="layer", exclude_modules=["pooler"])
    adapter = adapter_of(model)
    config = loadable_settings(adapter, name="here")
    for name in ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules", "r", "lora_alpha"):
        assert config[name] == adapter.config[name]
    assert torch.is_tensor(next(iter(adapter.tensors.values()))) and LoraConfig(**config)
