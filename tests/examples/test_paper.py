"""The paper's protocol in its small mode: a tiny random language model and 64 questions."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "paper"))
    import multiple_choice

    return multiple_choice


@pytest.mark.parametrize("scoring", [pytest.param("letters", marks=pytest.mark.slow), "answers"])
def test_the_small_mode_prints_the_table_and_goes_on_where_it_was(paper, scoring, tmp_path, capsys, monkeypatch):
    # Red for: a method without its metrics, questions that are both trained on and measured, a second run that trains again.
    arguments = ["--small", "--scoring", scoring, "--output", str(tmp_path), "--num-samples", "3", "--learning-rate", "1e-2"]
    first = paper.main([*arguments, "--seeds", "0", "1"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in table[2::2]] == ["| last", "| MC dropout", "| SWA", "| SWAG"]
    assert "nan" not in " ".join(table) and json.loads((tmp_path / "results.json").read_text())["seeds"].keys() == {"0", "1"}
    metrics = first["seeds"][0]["SWAG"]
    assert 0 <= metrics["accuracy"] <= 1 and metrics["NLL"] > 0 and 0 <= metrics["AUROC"] <= 1 and metrics["temperature"] == 1
    monkeypatch.setattr(paper.ChoiceTrainer, "train", lambda self: pytest.fail("trained again"))
    assert paper.main([*arguments, "--seeds", "0"])["seeds"][0] == first["seeds"][0]


def test_files_are_needed_without_the_small_mode(paper, capsys):
    # Red for: a run that trains for an hour and then finds nothing to measure on.
    with pytest.raises(SystemExit):
        paper.main(["--train", "a.jsonl"])
    assert "--train, --test and --shifted are needed" in capsys.readouterr().err
