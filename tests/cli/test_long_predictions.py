"""`swag-trainer predict` for tables and pipes: columns, standard input, interruption, and paths that are given as texts."""

import csv
import io
import json
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import DEMO, trained_folder
from huggingface_hub import HfApi

from swag_trainer.cli import predict
from swag_trainer.cli.main import main
from swag_trainer.cli.prediction_journal import PredictionJournal

TICKETS = [(f"T{number}", f"where is parcel {number}", "delivery") for number in range(7)]


@pytest.fixture(scope="module")
def model():
    return str(trained_folder())


@pytest.fixture
def tickets(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text("id,text,label\n" + "".join(f"{','.join(ticket)}\n" for ticket in TICKETS))
    return str(path)


def test_the_other_columns_are_kept_beside_the_predictions(model, tickets, tmp_path):
    # Red for: predictions that can be joined to nothing, a true label that the predicted one replaces, a column of lists that ends the
    # command after all texts were predicted.
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert main(["predict", model, "--file", tickets, "--output", str(tmp_path / name)]) == 0
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for rows in (lines, read, pq.read_table(tmp_path / "a.parquet").to_pylist()):
        assert [(row["id"], row["text"], row["input_label"]) for row in rows] == TICKETS
        assert all(row["label"] not in ("delivery", "", None) and "entropy" in row for row in rows)
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"text": "a", "tags": ["x", 1]}\n{"text": "b", "tags": "none"}\n{"text": "c"}\n')
    assert main(["predict", model, "--file", str(mixed), "--output", str(tmp_path / "b.parquet")]) == 0
    assert [row["tags"] for row in pq.read_table(tmp_path / "b.parquet").to_pylist()] == ['["x", 1]', '"none"', None]


@pytest.mark.parametrize("arguments", [["-"], ["--file", "-"]])
def test_texts_come_from_standard_input(arguments, model, monkeypatch, capsys):
    # Red for: "-" as a text, empty lines as texts.
    monkeypatch.setattr(sys, "stdin", io.StringIO("where is it\n\nmoney back\r\n"))
    assert main(["predict", model, *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["line"], row["text"]) for row in rows] == [(1, "where is it"), (3, "money back")]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["predict", model, *arguments]) == 1
    assert "There are no texts on standard input" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_interrupted_command_goes_on_where_it_stopped(form, model, tickets, tmp_path, monkeypatch, capsys):
    # Red for: hours of predictions gone with Ctrl-C, texts that are predicted twice, half a line taken for a prediction, a model that is
    # loaded before --resume is refused.
    command = ["predict", model, "--file", tickets, "--batch-size", "2", "--num-samples", "2"]
    whole, path = tmp_path / f"whole.{form}", tmp_path / f"cut off.{form}"
    assert main([*command, "--output", str(whole)]) == 0
    append, appended, failures = PredictionJournal.append, [], [KeyboardInterrupt()]

    def interrupted(self, records):
        if len(appended) == 2 and failures:
            raise failures.pop()
        append(self, records)
        appended.append([record["text"] for record in records])

    monkeypatch.setattr(PredictionJournal, "append", interrupted)
    capsys.readouterr()
    assert main([*command, "--output", str(path)]) == 130
    shown = capsys.readouterr().err
    partial = Path(f"{path}.partial")
    assert "Interrupted after 4 predictions, which are kept in" in shown and not path.exists() and partial.exists()
    resuming = shlex.split(shown.splitlines()[-1])[1:]
    with open(partial, "a") as file:
        file.write('{"line": 6, "text": "where is par')

    load_pipeline = predict.load_pipeline
    monkeypatch.setattr(predict, "load_pipeline", None)
    for more, words in (
        ([], "--resume goes on with them"),
        (["--resume", "--seed", "5"], "were made with seed None, and are to go on with 5"),
    ):
        assert main([*command, "--output", str(path), *more]) == 1
        assert words in capsys.readouterr().err
    table = Path(tickets).read_text()
    Path(tickets).write_text(table.replace("parcel 1", "my parcel"))
    assert main(resuming) == 1
    assert "is not the text in line 3 of" in capsys.readouterr().err
    Path(tickets).write_text(table)

    monkeypatch.setattr(predict, "load_pipeline", load_pipeline)
    del appended[:]
    assert main(resuming) == 0
    assert path.read_bytes() == whole.read_bytes() and not partial.exists()
    assert [text for batch in appended for text in batch] == [text for _, text, _ in TICKETS[4:]]
    assert main(resuming) == 0
    assert "finished already" in capsys.readouterr().err


def test_predictions_of_a_command_that_fails_are_kept(model, tickets, tmp_path, monkeypatch, capsys):
    # Red for: a full disk or a driver's error after hours that leaves nothing.
    append = PredictionJournal.append

    def failing(self, records):
        if self.count:
            raise OSError(28, "No space left on device")
        append(self, records)

    monkeypatch.setattr(PredictionJournal, "append", failing)
    output = str(tmp_path / "p.jsonl")
    assert main(["predict", model, "--file", tickets, "--batch-size", "3", "--output", output]) == 1
    assert f"3 predictions are kept in '{output}.partial'; --resume goes on with them." in capsys.readouterr().err
    monkeypatch.setattr(PredictionJournal, "append", append)
    assert main(["predict", model, "--file", tickets, "--output", output, "--overwrite"]) == 0
    assert len(Path(output).read_text().splitlines()) == 7 and not Path(f"{output}.partial").exists()


def test_a_path_that_is_given_as_a_text_is_refused_with_the_option_for_it(tickets, tmp_path, monkeypatch, capsys):
    # Red for: one prediction, of the words "tickets.csv".
    monkeypatch.chdir(tmp_path)
    for text, words in (
        ("tickets.csv", "swag-trainer predict user/model --file tickets.csv"),
        ("tikets.csv", "looks like the path of a file, which is not there"),
        (str(tmp_path), f"--dataset {tmp_path}"),
    ):
        assert main(["predict", "user/model", text]) == 1
        assert words in capsys.readouterr().err


def test_a_revision_of_the_repository_predicts(model, tmp_path, hub, capsys):
    # Red for: --revision for none but the adapter, or ignored.
    repo = "user/cli-revisions"
    HfApi().create_repo(repo)
    first = HfApi().upload_folder(repo_id=repo, folder_path=model).oid
    HfApi().delete_file("swag_posterior.safetensors", repo_id=repo)
    assert main(["predict", repo, "where is it"]) == 1
    assert "has no swag_posterior.safetensors" in capsys.readouterr().err
    assert main(["predict", repo, "where is it", "--revision", first]) == 0
    assert json.loads(capsys.readouterr().out)["label"]
    assert main(["predict", model, "where is it", "--revision", "main"]) == 1
    assert "is a folder here: leave it out" in capsys.readouterr().err


def test_the_goals_of_a_tuning_are_chosen_on_the_command_line(model, tmp_path, capsys):
    # Red for: thresholds for other goals than were asked for, which no later command finds.
    tuned, few = tmp_path / "tuned", tmp_path / "few.jsonl"
    lines = [line for line in DEMO.read_text(encoding="utf-8").splitlines() if '"split": "validation"' in line]
    few.write_text("\n".join(lines[::5]), encoding="utf-8")
    goals = ["--risks", "0.97", "--confidence", "0.8", "--coverages", "0.6", "--levels", "0.7"]
    assert main(["tune", model, "--dataset", str(few), "--num-samples", "2", *goals, "--output", str(tuned)]) == 0
    shown = capsys.readouterr().out
    assert "risk at most 0.97" in shown and "coverage at least 0.6" in shown and "at least 0.95" not in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
    for option, value in (("--coverage", "0.6"), ("--risk", "0.97"), ("--prediction-set", "0.7")):
        assert main(["predict", str(tuned), "where is it", option, value]) == 0
    assert main(["tune", model, "--dataset", str(DEMO), "--coverages", "60"]) == 1
    assert "--coverages must lie between 0 and 1, got 60" in capsys.readouterr().err


def test_the_rows_of_an_evaluation_hold_the_texts(model, tmp_path):
    # Red for: predictions of examples that nobody can look up, or texts of other examples.
    rows, few = tmp_path / "rows.parquet", tmp_path / "few.jsonl"
    lines = [{"text": text, "label": label, "split": "test"} for text, label in (("a b", "x"), ("c", "y"), ("d", "oos"))]
    few.write_text("\n".join(map(json.dumps, lines)))
    shutil.copytree(model, tmp_path / "model")
    options = ["--dataset", str(DEMO), "--ood", str(few), "--ood-split", "test", "--num-resamples", "2", "--methods", "SWA"]
    assert main(["evaluate", model, *options, "--rows", str(rows)]) == 0
    table = pq.read_table(rows).to_pylist()
    demo = [json.loads(line) for line in DEMO.read_text(encoding="utf-8").splitlines()]
    expected = [row["text"] for row in demo if row["split"] == "test" and row["intent"] != "out_of_scope"]
    assert [row["text"] for row in table if not row["is_ood"]] == expected
    assert [row["text"] for row in table if row["is_ood"]] == ["d"]
