"""Reading adapter_config.json of an untrusted folder, and the comparison of settings with those that a posterior was saved beside."""

import json
import os
import warnings

import pytest
import torch
from test_swag import a_posterior, rewrite

from swag_trainer import AdapterMismatchError, SwagPosterior
from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError
from swag_trainer.posterior.adapter_settings import ADAPTER_CONFIG, differing_setting, read_adapter_config, settings_of
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.saved_adapter import ADAPTER_WEIGHTS, SavedAdapter
from swag_trainer.posterior.storage import read_file, write_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / ADAPTER_CONFIG


def edit(folder, **changes):
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_pipe_a_device_a_folder_and_a_sparse_file_are_refused_at_once(path):
    # Red for: Path.read_bytes, which waits for ever, fills the memory, or asks for 60 GB.
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), path.mkdir):
        make()
        with pytest.raises(PosteriorFormatError, match=ADAPTER_CONFIG):
            read_adapter_config(path)
        path.rmdir() if path.is_dir() else path.unlink()
    with open(path, "wb") as file:
        file.truncate(60 * 1024**3)
    with pytest.raises(PosteriorFormatError, match="64424509440 bytes; more than"):
        read_adapter_config(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"peft_type": "LORA", "lora_alpha": NaN}',
        '{"peft_type": "LORA", "lora_alpha": 1e999}',
        '{"peft_type": "LORA", "lora_alpha": -Infinity}',
        '{"peft_type": "LORA", "r": 4, "r": 8}',
        '{"peft_type": "LORA", "r": ' + "9" * 5000 + "}",
        '{"peft_type": "LORA"',
        '["LORA"]',
        "\ud800".encode("utf-16", "surrogatepass"),
        b"\xff\xfe\xff",
    ],
)
def test_json_that_is_not_strict_is_refused_with_the_files_name(path, text):
    # Red for: json.loads as it is: a RecursionError, NaN that is noticed at the first prediction, the last of two keys.
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PosteriorFormatError, match=ADAPTER_CONFIG) as caught:
        read_adapter_config(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peft_type", 5),
        ("base_model_name_or_path", {"a": 1}),
        ("base_model_name_or_path", "x" * 5000),
        ("base_model_name_or_path", "user/\x1b[31mbase"),
        ("r", "8"),
        ("r", True),
        ("r", 10**30),
        ("lora_alpha", [8]),
        ("lora_alpha", True),
        ("target_modules", 3),
        ("target_modules", ["query", 3]),
        ("modules_to_save", "classifier"),
        ("rank_pattern", ["query"]),
        ("alpha_pattern", {"a\nb": 1}),
        ("layers_to_transform", "1"),
        ("anything", {"deep": {"deeper": ["x" * 5000]}}),
    ],
)
def test_a_setting_of_another_type_or_size_is_refused_by_name(path, setting, value):
    # Red for: a TypeError or AttributeError of the first that uses it.
    path.write_text(json.dumps({"peft_type": "LORA"} | {setting: value}))
    with pytest.raises(PosteriorFormatError, match=f"{setting}.*expected|{setting}'?: "):
        read_adapter_config(path)


def test_a_file_without_the_kind_of_adapter_and_a_missing_one_are_told_apart(path):
    # Red for: a KeyError, or one message for both.
    with pytest.raises(PosteriorNotFoundError, match="There is no adapter in"):
        read_adapter_config(path)
    path.write_text("{}")
    with pytest.raises(PosteriorFormatError, match="does not state peft_type"):
        read_adapter_config(path)


def test_what_is_not_set_and_the_order_of_names_make_no_difference():
    # Red for: a digest of the file, which a newer PEFT and the order of a set change.
    ours = {"r": 4, "target_modules": ["value", "query"], "use_dora": False, "rank_pattern": {}, "lora_dropout": 0.1}
    theirs = {"r": 4, "target_modules": ["query", "value"], "news": None, "lora_dropout": 0.5, "peft_version": "9"}
    assert settings_of(ours) == settings_of(theirs)
    assert differing_setting(ours, theirs | {"r": 8}) == "r"
    assert differing_setting(ours, theirs | {"use_rslora": True}) == "use_rslora"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lora_alpha", 16),
        ("alpha_pattern", {"value": 1}),
        ("use_rslora", True),
        ("use_dora", True),
        ("layers_to_transform", [0]),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "olora"),
        ("news_of_a_later_peft", 3),
    ],
)
def test_a_setting_that_was_changed_after_the_posterior_was_saved_is_refused_with_both_values(tmp_path, setting, value):
    # Red for: a digest of the tensors alone: other predictions, without a word.
    a_posterior().save_pretrained(tmp_path)
    edit(tmp_path, **{setting: value})
    with pytest.raises(AdapterMismatchError, match=rf"beside an adapter with {setting}=not set.*now states {setting}="):
        SwagPosterior.from_pretrained(tmp_path)
    SwagPosterior.from_pretrained(tmp_path, ignore_mismatched_adapter=True)


def test_settings_that_change_nothing_may_differ_without_a_warning(tmp_path):
    # Red for: a comparison of whole files, which fails as soon as another PEFT writes the adapter again.
    saved = a_posterior()
    saved.save_pretrained(tmp_path)
    edit(tmp_path, inference_mode=True, peft_version="9.9", lora_dropout=0.3, use_dora=False, bias=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = SwagPosterior.from_pretrained(tmp_path)
    assert loaded.digest == saved.digest and loaded.adapter.config["peft_version"] == "9.9"


def test_a_file_of_an_earlier_version_is_read_with_one_warning(tmp_path):
    # Red for: a refusal of every older file, or silence about what cannot be checked.
    a_posterior().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors, document: document["record"].pop("adapter_settings"))
    with pytest.warns(UserWarning, match="did not record the adapter's settings.*Save it again") as caught:
        posterior = SwagPosterior.from_pretrained(tmp_path)
    assert len(caught) == 1
    posterior.save_pretrained(tmp_path)
    edit(tmp_path, lora_alpha=16)
    with pytest.raises(AdapterMismatchError, match="lora_alpha"):
        SwagPosterior.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [1e18, -3e37, 5e18])
@pytest.mark.parametrize("which", ["posterior", "adapter"])
def test_an_absurd_number_is_refused_with_file_and_tensor(tmp_path, value, which):
    # Red for: a check of finiteness alone: the squares overflow at the first prediction.
    posterior = a_posterior()
    posterior.save_pretrained(tmp_path, dtype="float32")
    if which == "posterior":
        tensors, document, _ = read_file(tmp_path / POSTERIOR_FILE)
        name = next(name for name in tensors if name.startswith("deviations/"))
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = value
        write_file(tmp_path / POSTERIOR_FILE, tensors, document)
    else:
        name = posterior.layout.keys[0]
        tensors = {key: tensor.clone() for key, tensor in posterior.adapter.tensors.items()}
        tensors[name].view(-1)[0] = value
        SavedAdapter(posterior.adapter.config, tensors).write(tmp_path)
    file = POSTERIOR_FILE if which == "posterior" else ADAPTER_WEIGHTS
    with pytest.raises(PosteriorFormatError, match=rf"{file}.*1 of \d+ values of '{name}' are not finite and below 1e\+18"):
        SwagPosterior.from_pretrained(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("pad_token_id", 10**20), ("pad_token_id", -2), ("scale", 1e30)])
def test_a_record_with_an_absurd_number_is_refused_by_name(tmp_path, field, value):
    # Red for: an AssertionError of torch's embedding, or predictions that are not finite.
    a_posterior().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors, document: document["record"].update({field: value}))
    with pytest.raises(PosteriorFormatError, match=field):
        SwagPosterior.from_pretrained(tmp_path)


def test_large_but_honest_numbers_are_read(tmp_path):
    # Red for: a limit that meets a posterior whose variance is merely large.
    posterior = a_posterior()
    posterior.gaussian.variance[0] = 1e12
    posterior.save_pretrained(tmp_path, dtype="float32")
    assert torch.equal(SwagPosterior.from_pretrained(tmp_path).gaussian.variance, posterior.gaussian.variance)


def test_a_changed_setting_is_shown_without_its_escape_codes(tmp_path):
    # Red for: a name of the posterior's record written to the terminal as it is.
    a_posterior().save_pretrained(tmp_path)
    for changed in ({"\x1b[31m": "1"}, {"peft_type": "\x1b[31m"}):
        rewrite(tmp_path, lambda tensors, document, new=changed: document["record"]["adapter_settings"].update(new))
        with pytest.raises(AdapterMismatchError) as caught:
            SwagPosterior.from_pretrained(tmp_path)
        assert "x1b[31m" in str(caught.value) and "\x1b" not in str(caught.value)
