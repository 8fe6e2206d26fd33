"""What lies in an untrusted repository beside adapter and posterior: code, configurations, base models elsewhere, and true errors."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from transformers import pipeline

from swag_trainer import SwagError, SwagPosterior
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.storage import read_file, write_file
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification

CODE = "import pathlib; pathlib.Path({!r}).write_text('ran')\nclass Mine: pass\n"
MAP = {
    "AutoConfig": "mine.Mine",
    "AutoTokenizer": ["mine.Mine", "mine.Mine"],
    "AutoModelForSequenceClassification": "mine.Mine",
}


@pytest.fixture
def folder(trained, tmp_path):
    trainer, _ = trained
    return Path(shutil.copytree(trainer.args.output_dir, tmp_path / "repository"))


@pytest.fixture
def mark(tmp_path):
    """The file that code of a repository would leave."""
    return tmp_path / "mark"


def plant(folder, mark, **config):
    """Put a module and a config.json that names it into a folder."""
    (folder / "mine.py").write_text(CODE.format(str(mark)))
    path = folder / "config.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {"model_type": "mine", "auto_map": MAP} | config))


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def classify(name, **arguments):
    return pipeline("swag-text-classification", model=str(name), device="cpu", **arguments)


@pytest.mark.parametrize(
    "order",
    [
        "from transformers import pipeline; import swag_trainer",
        pytest.param("import swag_trainer; from transformers import pipeline", marks=pytest.mark.slow),
    ],
)
def test_no_code_of_a_repository_runs_whatever_standard_input_says(folder, mark, order):
    # Red for: config.json beside the adapter read before our loader is asked, and a "y" taken for consent; a guard that is set only
    # when transformers.pipelines is imported after this package, or before it.
    plant(folder, mark, custom_pipelines={"swag-text-classification": {"impl": "mine.Mine", "pt": ["AutoModel"]}})
    tokenizer = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    code = (
        f"{order}\nfrom swag_trainer import SwagError\n"
        f"classify = pipeline('swag-text-classification', model={str(folder)!r}, device='cpu')\n"
        "print(classify('good film')[0]['label'])\n"
        f"import json, pathlib; pathlib.Path({str(folder)!r}, 'tokenizer_config.json').write_text({json.dumps(tokenizer)!r})\n"
        "for options in ({}, {'trust_remote_code': True}):\n"
        "    try:\n"
        f"        pipeline('swag-text-classification', model={str(folder)!r}, device='cpu', **options)\n"
        "    except SwagError as error:\n"
        "        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[0] in {"negative", "neutral", "positive"} and lines[1:] == ["refused"] * 2, done.stderr[
        -2000:
    ]
    assert "custom code" not in done.stdout + done.stderr and not mark.exists()


def test_a_base_with_code_of_its_own_is_refused(folder, base_folder, mark, tmp_path, monkeypatch):
    # Red for: trust_remote_code=None, with which transformers asks on the terminal.
    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    plant(base, mark)
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked"))
    for arguments in ({}, {"tokenizer": (str(base), {"trust_remote_code": True})}):
        with pytest.raises(SwagError, match="trust_remote_code|cannot be loaded"):
            classify(folder, model_kwargs={"base_model": str(base)} if not arguments else {}, **arguments)
    assert not mark.exists()


def test_remote_code_is_refused_before_a_file_is_opened(tmp_path):
    # Red for: a check in the loader, which comes after transformers has read what it likes.
    with pytest.raises(SwagError, match="trust_remote_code=True would let"):
        classify(tmp_path / "nowhere", trust_remote_code=True)


def test_transformers_reads_no_settings_before_they_are_checked(folder):
    # Red for: find_adapter_config_file of transformers, after which json.load asks for 60 GB.
    with open(folder / "adapter_config.json", "wb") as file:
        file.truncate(60 * 1024**3)
    with pytest.raises(SwagError, match="64424509440 bytes"):
        classify(folder)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("https://evil.example/base", "by the address 'https://evil.example/base'.*base_model="),
        ("file:///etc", "by the address"),
        ("/gone/base", "by a path, which is not here.*base_model="),
        ("../a-base-that-is-not-here", "by a path, which is not here"),
    ],
)
def test_a_base_that_a_folder_may_not_name_is_refused_before_anything_is_asked(folder, hub, base, words):
    # Red for: transformers asked for a name that is an address or a path.
    edit(folder, base_model_name_or_path=base)
    requests = len(hub.hub.log)
    with pytest.raises(SwagError, match=words):
        classify(folder, model_kwargs={"ignore_mismatched_adapter": True})
    assert len(hub.hub.log) == requests


def test_a_repository_on_the_hub_cannot_name_a_path_but_the_caller_can(folder, base_folder, hub, tmp_path, monkeypatch):
    # Red for: the folder followed that a repository names, or refused where the caller names it.
    posterior = SwagPosterior.from_pretrained(folder)
    posterior.push_to_hub("user/names-a-path")
    with pytest.raises(SwagError, match="by a path, and paths are not followed for a repository from the Hub.*base_model="):
        classify("user/names-a-path")
    found = classify("user/names-a-path", model_kwargs={"base_model": str(base_folder)})("good film")
    assert found == classify(folder)("good film")
    monkeypatch.chdir(tmp_path)
    edit(folder, base_model_name_or_path="some/base")
    SwagPosterior.from_pretrained(folder, ignore_mismatched_adapter=True).push_to_hub("user/names-a-folder")
    shutil.copytree(base_folder, tmp_path / "some" / "base")
    with pytest.raises(SwagError, match="is a repository on the Hub, and a path here too"):
        classify("user/names-a-folder")


def test_a_full_folder_for_temporary_files_is_what_the_user_reads(folder, monkeypatch):
    # Red for: OSError, after which transformers tries the plain model: "comes without a posterior".
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(SwagError, match=r"Loading '.*repository' failed: OSError.*No space left.*TMPDIR"):
        classify(folder)


def test_labels_that_do_not_fit_are_what_the_user_reads(folder):
    # Red for: PEFT's RuntimeError, after which transformers tries the plain model.
    tensors, document, _ = read_file(folder / POSTERIOR_FILE)
    document["record"]["labels"] = ["a", "b", "c", "d", "e"]
    write_file(folder / POSTERIOR_FILE, tensors, document)
    with pytest.raises(SwagError, match=r"size mismatch|shape|fit"):
        classify(folder)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, KeyError, AssertionError, MemoryError])
def test_an_error_of_another_library_keeps_its_words_and_is_ours(folder, monkeypatch, error):
    # Red for: an error that transformers swallows.
    def fail(*arguments, **options):
        raise error("the true reason")

    monkeypatch.setattr("swag_trainer.prediction.loading.PeftModel.from_pretrained", fail)
    with pytest.raises(SwagError, match=f"{error.__name__}.*the true reason"):
        AutoSwagModelForSequenceClassification.from_pretrained(str(folder))


def test_a_pattern_in_the_settings_cannot_block_the_pipeline(folder):
    # Red for: PEFT given the file's own settings, with which re never returns.
    tensors, document, _ = read_file(folder / POSTERIOR_FILE)
    pattern = r"(bert\.)?((a|e|n|c|o|d|r|\.)+)+(\d|\.|[a-z])*query_"
    edit(folder, target_modules=pattern)
    expected = AutoSwagModelForSequenceClassification.from_pretrained(str(folder), ignore_mismatched_adapter=True)
    assert len(expected.peft_config["default"].target_modules) == 4
