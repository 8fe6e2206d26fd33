"""What the README, the documentation and the docstrings show is run as it stands, and what they name exists."""

import ast
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import support_matrix
from run_documents import blocks

import hub_cards
import swag_trainer
import swag_trainer.metrics

ROOT = Path(__file__).parents[1]
RUN = [sys.executable, str(ROOT / "tests/run_documents.py")]
MODULES = [
    module.name
    for package in (swag_trainer, hub_cards)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *PAGES]


def test_the_readme_runs_from_its_first_line_to_its_last():
    # Red for: a name, an argument or an attribute that the README shows and the package does not have.
    result = subprocess.run([*RUN, "README.md"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    shown = next(line for line in result.stdout.splitlines() if "mutual_information" in line)
    assert re.search(r"'label': '\w+', 'score': 0\.\d+, 'entropy': \d\.\d+, 'mutual_information': \d", shown)
    assert "swag_posterior.safetensors" in result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_pages_run_after_the_tutorial_and_the_notebooks_alone():
    # Red for: a page or a notebook that shows what the package does not do any more.
    pages = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
    first, *others = sorted([*pages, *NOTEBOOKS], key=lambda page: page.stem != "tutorial")
    result = subprocess.run([*RUN, *(str(page.relative_to(ROOT)) for page in (first, *others))], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert first.stem == "tutorial" and len(NOTEBOOKS) == 3 and result.stdout.count(": ran") > len(others) - 1


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_name_what_exists(page):
    # Red for: a page that imports what was renamed, or calls it with an argument that it does not take.
    names = {}
    for node in ast.walk(ast.parse(blocks(page))):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("swag_trainer", "hub_cards"):
            module = importlib.import_module(node.module)
            names |= {alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(ast.parse(blocks(page))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            if isinstance(names[node.func.id], type) and issubclass(names[node.func.id], Exception):
                continue
            parameters = inspect.signature(names[node.func.id]).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                assert {keyword.arg for keyword in node.keywords} <= set(parameters), node.func.id


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name):
    # Red for: an example that has drifted from its code.
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_notebooks_are_kept_without_outputs():
    # Red for: pictures and paths of the machine that a notebook was last run on.
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None), notebook.name


def test_links_paths_and_commands_of_the_documents_exist():
    # Red for: a file or a heading that moved, a program or a result that a page names and the repository lacks, a make target that was renamed.
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            target = document.parent / path if path else document
            assert target.exists(), (document.name, path)
            assert not anchor or anchor in headings(target), (document.name, path, anchor)
        for path in re.findall(r"`((?:benchmarks|docs|examples|tests)/[\w./-]+)", text):
            assert (ROOT / path).exists(), (document.name, path)
        assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= targets, document.name
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES)


def headings(page):
    """The anchors that Markdown makes of a page's headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in found}


def test_the_readme_can_be_read_in_two_minutes():
    # Red for: tables and how-to that belong on a page of the documentation.
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1200 and len(re.findall(r"^\|[-: |]+\|$", text, re.MULTILINE)) == 1
    assert (ROOT / "docs/images/page.png").stat().st_size < 150_000


def test_the_reference_has_every_public_name():
    # Red for: a new public name without a place in the reference.
    reference = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    documented = set(re.findall(r"\w+", reference))
    for package in (swag_trainer, hub_cards):
        assert {name for name in package.__all__ if not name.startswith("__")} <= documented
    for name in swag_trainer.metrics.__all__:
        assert getattr(swag_trainer.metrics, name).__module__ in reference
    commands = importlib.import_module("swag_trainer.cli.main").COMMANDS
    assert all(f"::: swag_trainer.cli.{command}" in reference for command in commands)


def test_troubleshooting_quotes_messages_that_the_package_has():
    # Red for: a message that was reworded, so that a search for it does not find its explanation.
    sources = [path for package in ("swag_trainer", "hub_cards") for path in (ROOT / package).rglob("*.py")]
    texts = [
        node.value
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    titles = re.findall(r'^### "(.+)"$', (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(titles) > 20
    assert [title for title in titles if not any(title in text for text in texts)] == []


def test_the_tables_of_the_support_matrix_are_those_of_the_measurements():
    # Red for: a table that was edited by hand, or a measurement that was not taken over.
    text = support_matrix.PAGE.read_text(encoding="utf-8")
    assert support_matrix.with_tables(text) == text


def test_no_file_names_a_machine_s_path_or_a_token():
    # Red for: a path of whoever wrote the file, or a secret, in the repository.
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        # The tests name such paths to see them refused.
        if not name.startswith("tests/") and Path(name).suffix in {"", ".py", ".md", ".toml", ".txt", ".cff", ".jsonl"}:
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(root|home|work|Users)/\w", text), name
            assert not re.search(r"hf_[A-Za-z]{20,}", text), name
