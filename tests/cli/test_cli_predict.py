import csv
import json

import pyarrow.parquet as pq
import pytest
from command_line import trained_folder
from transformers import pipeline

from swag_trainer.cli.main import main

TEXTS = ["where is my parcel", "i was charged twice", 'it says "delivered", but no']
NUMBERS = ("score", "entropy", "mutual_information")


@pytest.fixture(scope="module")
def model():
    return str(trained_folder())


def test_every_format_holds_the_pipelines_predictions_in_the_order_of_the_texts(model, tmp_path, capsys):
    # Red for: predictions that moved to other texts, digits that were rounded, a format that loses a column.
    expected = pipeline("swag-text-classification", model=model, device="cpu")(TEXTS, num_samples=3, seed=1)
    common = ["predict", model, *TEXTS, "--num-samples", "3", "--seed", "1", "--device", "cpu", "--batch-size", "2"]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert main([*common, "--output", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out == ""
    assert main(common) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    for rows in (lines, read, pq.read_table(tmp_path / "a.parquet").to_pylist()):
        assert [row["text"] for row in rows] == TEXTS
        assert [row["label"] for row in rows] == [other["label"] for other in expected]
        for row, other in zip(rows, expected, strict=True):
            assert [float(row[name]) for name in NUMBERS] == pytest.approx([other[name] for name in NUMBERS], abs=1e-6)


def test_a_withheld_label_is_empty_in_every_format(model, tmp_path):
    # Red for: the word None for a label, or columns that only the first prediction has.
    files = [str(tmp_path / name) for name in ("b.jsonl", "b.csv", "b.parquet")]
    for file in files:
        assert main(["predict", model, *TEXTS, "--abstain-below", "1", "--output", file]) == 0
    first = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert first["label"] is None and first["top_label"] and "below 1.000" in first["reason"]
    with open(tmp_path / "b.csv", newline="") as file:
        assert next(csv.DictReader(file))["label"] == ""
    assert pq.read_table(files[2]).to_pylist()[0]["label"] is None


def test_texts_come_from_files_too(model, tmp_path, capsys):
    # Red for: empty lines as texts, a column that is not asked for, labels that are needed to predict.
    (tmp_path / "c.txt").write_text("\n".join(TEXTS) + "\n\n")
    (tmp_path / "c.csv").write_text("body\n" + "\n".join(f'"{text[:7]}"' for text in TEXTS) + "\n")
    for options, expected in (
        (["--file", str(tmp_path / "c.txt")], TEXTS),
        (["--file", str(tmp_path / "c.csv"), "--text-column", "body"], [text[:7] for text in TEXTS]),
        (["--dataset", str(tmp_path / "c.csv"), "--split", "c", "--text-column", "body"], [text[:7] for text in TEXTS]),
    ):
        assert main(["predict", model, *options]) == 0
        assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == expected


def test_one_example_that_cannot_be_read_costs_that_example_and_shows_in_the_exit_code(model, tmp_path, capsys):
    # Red for: half an emoji that ends the command without naming its line, or predictions that no longer line up with the file.
    file = tmp_path / "odd.jsonl"
    file.write_text('{"text": "where is it"}\n\n{"text": "\\ud83d"}\n{"txt": "x"}\nnot json\n{"text": "charged twice"}\n')
    assert main(["predict", model, "--file", str(file)]) == 1
    shown = capsys.readouterr()
    assert [(row["line"], row["text"]) for row in map(json.loads, shown.out.splitlines())] == [
        (1, "where is it"),
        (6, "charged twice"),
    ]
    assert "3 of 5 examples have no prediction" in shown.err
    assert all(f"line {line} of" in shown.err for line in (3, 4, 5)) and "Traceback" not in shown.err
    (tmp_path / "odd.txt").write_text("one\u2028two\n\nthree\n")
    assert main(["predict", model, "--file", str(tmp_path / "odd.txt")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.strip().split("\n")]
    assert [(row["line"], row["text"]) for row in rows] == [(1, "one\u2028two"), (3, "three")]


def test_nothing_is_overwritten_unasked_and_nothing_half_written(model, tmp_path, capsys):
    # Red for: yesterday's predictions gone, or a file that a failed command left.
    file = tmp_path / "d.jsonl"
    file.write_text("mine")
    assert main(["predict", model, "text", "--output", str(file)]) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["predict", model, "text", "--output", str(file), "--overwrite"]) == 0
    assert json.loads(file.read_text())["text"] == "text"
    assert main(["predict", model, "text", "--risk", "0.05", "--output", str(tmp_path / "e.jsonl")]) == 1
    assert "was not tuned" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give one of the three"),
        (["text", "--file", "x.txt"], "give one of the three"),
        (["text", "--output", "predictions.xlsx"], "--output is a file that ends in .jsonl, .csv, .parquet"),
        (["--file", "missing.csv"], "There is no file 'missing.csv'"),
        (["--file", "missing.txt"], "missing.txt"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_message(model, options, words, capsys):
    # Red for: a traceback, or a guess at what was meant.
    assert main(["predict", model, *options]) == 1
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown


def test_a_model_without_posterior_is_refused(tmp_path, capsys):
    # Red for: a point estimate that predicts in the posterior's name.
    assert main(["predict", str(tmp_path), "text"]) == 1
    assert "has no swag_posterior.safetensors" in capsys.readouterr().err
    assert main(["predict", "./missing", "text"]) == 1
    assert "There is no file or folder './missing', which MODEL names." in capsys.readouterr().err
