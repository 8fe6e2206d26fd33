"""What the README and the docstrings show is run as it stands."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from transformers import BertModel

import hub_cards
import swag_trainer

ROOT = Path(__file__).parents[1]
MODULES = [
    module.name
    for package in (swag_trainer, hub_cards)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
]


@pytest.fixture
def minilm_by_name(hub, base_folder, tokenizer, tmp_path):
    """The README's base model, played by the tiny one under the same name; like the real one it has a pooler and no head."""
    BertModel.from_pretrained(base_folder).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    HfApi().create_repo("user/played-by", exist_ok=True)
    HfApi().upload_folder(repo_id="user/played-by", folder_path=tmp_path / "base")
    name = "sentence-transformers/all-MiniLM-L6-v2"
    hub.hub.repos[name] = hub.hub.repos["user/played-by"]
    yield name
    del hub.hub.repos[name]


def test_the_readme_runs_from_its_first_line_to_its_last(minilm_by_name, tmp_path):
    # Red for: a name, an argument or an attribute that the README shows and the package does not have.
    fences = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(fences) >= 4
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    # A limit on the steps, and nothing else, is added: what is shown is what runs.
    script = "import transformers\n" + "\n".join(fences).replace("num_train_epochs=20", "max_steps=12")
    (tmp_path / "readme.py").write_text(script)
    result = subprocess.run(
        [sys.executable, "readme.py"],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    shown = next(line for line in result.stdout.splitlines() if "mutual_information" in line)
    assert re.search(r"'label': '\w+', 'score': 0\.\d+, 'entropy': \d\.\d+, 'mutual_information': \d", shown)
    published = HfApi().list_repo_files("user/support-swag")
    assert {"swag_posterior.safetensors", "README.md", "reliability.png", "trajectory.png"} <= set(published)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name):
    # Red for: an example that has drifted from its code.
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_links_and_commands_of_the_documents_exist():
    # Red for: a file that moved, or a make target that was renamed.
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / link).exists(), (document, link)
        assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= targets, document


def test_no_file_names_a_machine_s_path_or_a_token():
    # Red for: a path of whoever wrote the file, or a secret, in the repository.
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        # The tests name such paths to see them refused.
        if not name.startswith("tests/") and Path(name).suffix in {"", ".py", ".md", ".toml", ".txt", ".cff", ".jsonl"}:
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(root|home|work|Users)/\w", text), name
            assert not re.search(r"hf_[A-Za-z]{20,}", text), name
