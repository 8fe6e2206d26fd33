"""Cards without the packages of their extra."""

import json
import os
import subprocess
import sys

import pytest
from command_line import trained_folder
from huggingface_hub import HfApi, ModelCard

# Packages that cannot be found, as if they were not installed.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden!r} else found(name, package)
sys.meta_path.insert(0, Hidden())
"""


def run_without(hidden, code):
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=tuple(hidden)) + code],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ,
    )


@pytest.mark.parametrize("package", ["jinja2", "markupsafe", "yaml"])
def test_importing_hub_cards_without_its_extra_says_what_to_install(package):
    # Red for: "No module named 'jinja2'" from the middle of somebody's script.
    result = run_without([package], "import hub_cards")
    assert result.returncode == 1
    assert result.stderr.strip().endswith(
        f"ImportError: hub_cards needs the package {package!r}: pip install 'swag-trainer[cards]'"
    )


@pytest.mark.slow
def test_a_folder_is_pushed_without_matplotlib_and_a_plot_says_what_it_needs(tmp_path):
    # Red for: a push that ends because of plots that nothing asks for, or a plot that ends with "No module named".
    code = f"""
import json
from swag_trainer.cli.main import main
code = main(["push", {str(trained_folder())!r}, "--repo", "user/no-plots"])
import hub_cards
try:
    hub_cards.reliability_diagram
except ImportError as error:
    said = str(error)
print(json.dumps([code, said, "matplotlib" in sys.modules, sorted(set(hub_cards.__all__) - set(dir(hub_cards)))]))
"""
    result = run_without(["matplotlib"], code)
    assert result.returncode == 0, result.stderr[-2000:]
    code, said, imported, missing = json.loads(result.stdout.splitlines()[-1])
    assert (code, imported, missing) == (0, False, [])
    assert said == "hub_cards.reliability_diagram needs the package 'matplotlib': pip install 'swag-trainer[cards]'"
    assert "Without plots, which need the package 'matplotlib'" in result.stderr
    assert "swag_posterior.safetensors" in HfApi().list_repo_files("user/no-plots")
    card = ModelCard.load("user/no-plots")
    assert "swag-text-classification" in card.text and "![" not in card.text
