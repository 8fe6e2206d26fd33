import json
import os
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi

from swag_trainer.cli.labels import class_names_of
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.splits import balanced, stratified
from swag_trainer.cli.text_data import read_any_text, read_ood, read_text
from swag_trainer.errors import SwagError

ROWS = [("train", f"a{i}", "yes") for i in range(10)] + [("train", f"b{i}", "no") for i in range(10)]
ROWS += [("val", "c", "no"), ("test", "d", "yes"), ("oos_test", "e", "oos"), ("oos_train", "f", "oos"), ("test", "g", "unseen")]


def jsonl(path, rows, keys=("split", "text", "intent")):
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return str(path)


def options(dataset, **others):
    return TextOptions(dataset=dataset, **others)


def test_out_of_scope_examples_are_kept_apart_and_belong_to_no_class(tmp_path):
    # Red for: training on out-of-distribution text, a class of its own for it, or a split under another name left out.
    source = jsonl(tmp_path / "task.jsonl", ROWS)
    train, test = read_text(options(source), "train"), read_text(options(source), "test")
    assert (len(train.texts), train.ood, sorted(set(train.labels))) == (20, ["f"], ["no", "yes"])
    assert (test.texts, test.labels, test.ood) == (["d", "g"], ["yes", "unseen"], ["e"])
    assert read_text(options(source), "dev").texts == ["c"]
    assert (train.name, train.split, train.revision) == ("task.jsonl", "train", None)
    assert read_text(options(source, dataset_name="mine"), "train").name == "mine"
    assert read_ood(source, "test").ood == ["e"]
    assert [example.text for example in read_any_text(source, "test", None)] == ["d", "e", "g"]
    assert len(read_any_text(source, None, None)) == len(ROWS)


def test_a_label_that_the_model_does_not_know_is_refused_and_named(tmp_path):
    # Red for: rows that are dropped until the metrics look right.
    test = read_text(options(jsonl(tmp_path / "task.jsonl", ROWS)), "test")
    with pytest.raises(SwagError, match=r"1 examples of 'task.jsonl' \(test\) have the label 'unseen'"):
        test.numbers(["no", "yes"])
    assert test.numbers(["unseen", "yes"]).tolist() == [1, 0]


def test_validation_rows_that_come_from_the_training_rows_are_no_training_rows(tmp_path):
    # Red for: tuning on rows that were trained on, or other rows in every command.
    (tmp_path / "train.csv").write_text("text,category\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(20)))
    (tmp_path / "test.csv").write_text('text,category\n"x, y",a\n')
    train, validation = read_text(options(str(tmp_path)), "train"), read_text(options(str(tmp_path)), "validation")
    assert (len(train.texts), len(validation.texts)) == (16, 4)
    assert not set(train.texts) & set(validation.texts)
    assert sorted(validation.labels) == ["a", "a", "b", "b"]
    assert (train.split, validation.split) == ("train, without a part held out", "train, a part held out")
    assert read_text(options(str(tmp_path)), "test").texts == ["x, y"]


def test_a_folder_of_parallel_text_and_label_files_is_read_line_by_line(tmp_path):
    # Red for: labels of other lines.
    for split in ("train", "valid"):
        (tmp_path / split).mkdir(parents=True)
        (tmp_path / split / "seq.in").write_text("one\ntwo\n")
        (tmp_path / split / "label").write_text("b\na\n")
    validation = read_text(options(str(tmp_path)), "validation")
    assert (validation.texts, validation.labels) == (["one", "two"], ["b", "a"])
    (tmp_path / "valid" / "label").write_text("b\n")
    with pytest.raises(SwagError, match="2 texts and 1 labels"):
        read_text(options(str(tmp_path)), "validation")


def test_a_data_set_of_the_hub_is_read_at_the_commit_that_is_recorded(monkeypatch):
    # Red for: class numbers taken for names, a configuration that is not passed on, a revision that is not the one that was read.
    features = datasets.Features({"utterance": datasets.Value("string"), "label": datasets.ClassLabel(names=["pay", "oos"])})
    splits = {
        name: datasets.Dataset.from_dict({"utterance": [f"{name} 1", f"{name} 2"], "label": [0, 1]}, features=features)
        for name in ("train", "validation", "test")
    }
    asked = []
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha="5" * 40, siblings=[]))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or datasets.DatasetDict(splits)
    )
    test = read_text(options("user/intents:plus"), "test")
    assert asked == [(("user/intents", "plus"), {"revision": "5" * 40})]
    assert (test.name, test.revision) == ("user/intents:plus", "5" * 40)
    assert (test.texts, test.labels, test.ood) == (["test 1"], ["pay"], ["test 2"])


def test_a_data_set_with_code_of_its_own_is_refused(monkeypatch):
    # Red for: the RuntimeError of datasets.
    def load(*names, **options):
        raise RuntimeError("Dataset scripts are no longer supported, but found data.py")

    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha="5" * 40, siblings=[]))
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(SwagError, match="'user/code'.* Dataset scripts are no longer supported"):
        read_text(options("user/code"), "train")


def test_data_that_cannot_be_read_is_refused_with_the_reason(tmp_path, hub):
    # Red for: a traceback, or rows without text that become the word None.
    source = jsonl(tmp_path / "task.jsonl", ROWS)
    with pytest.raises(SwagError, match="has no split 'dog'; it has 'test', 'train', 'validation'"):
        read_text(options(source), "dog")
    with pytest.raises(SwagError, match="--text-column names it"):
        read_text(options(jsonl(tmp_path / "odd.jsonl", [("train", "a", "b")], ("split", "body", "intent"))), "train")
    odd = options(str(tmp_path / "odd.jsonl"), text_column="body")
    assert [example.text for example in read_any_text(odd.dataset, "train", "body")] == ["a"]
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    with pytest.raises(SwagError, match="broken.jsonl"):
        read_text(options(str(tmp_path / "broken.jsonl")), "broken")
    (tmp_path / "null.jsonl").write_text('{"text": null, "label": "a"}\n')
    with pytest.raises(SwagError, match="line 1 of .*its text is None"):
        read_text(options(str(tmp_path / "null.jsonl")), "null")
    with pytest.raises(SwagError, match="There is no file or folder 'no such/folder/here'"):
        read_text(options("no such/folder/here"), "train")
    with pytest.raises(SwagError, match="user/no-such-data"):
        read_text(options("user/no-such-data"), "train")


def table(path, rows, header="text,label", encoding="utf-8"):
    path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
    return options(str(path))


def test_a_held_out_part_has_the_classes_in_the_proportions_of_the_data():
    # Red for: a balanced part, on which temperatures and thresholds come out for other data; the last example of a class held out.
    targets = np.repeat(np.arange(8), [400, 200, 100, 50, 20, 5, 2, 1])
    chosen = stratified(targets, len(targets) // 5, seed=0)
    assert np.bincount(targets[chosen], minlength=8).tolist() == [80, 40, 20, 10, 4, 1, 0, 0]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert not np.array_equal(chosen, stratified(targets, len(targets) // 5, seed=1))
    for counts in ([19, 1], [2, 2], [1, 1], [95, 5], [3, 3, 3]):
        targets = np.repeat(np.arange(len(counts)), counts)
        left = np.delete(targets, stratified(targets, len(targets) // 5, seed=0))
        assert set(left.tolist()) == set(range(len(counts)))


def test_a_rare_class_is_in_training_and_in_the_held_out_part_and_a_single_example_is_named(tmp_path):
    # Red for: all examples of a rare class held out, so that training has one class.
    rows = [f"a{i},common" for i in range(190)] + [f"b{i},rare" for i in range(10)] + ["c,single"]
    source = table(tmp_path / "tickets.csv", rows)
    with pytest.warns(UserWarning, match="1 classes have one example.*'single'"):
        parts = {split: read_text(source, split) for split in ("train", "validation", "test")}
    assert {split: part.labels.count("rare") for split, part in parts.items()} == {"train": 6, "validation": 2, "test": 2}
    assert [part.labels.count("single") for part in parts.values()] == [1, 0, 0]
    assert sorted(text for part in parts.values() for text in part.texts) == sorted(row.partition(",")[0] for row in rows)
    assert parts["test"].split == "train, a second part held out"


def test_one_file_without_a_column_of_splits_is_the_training_data_and_found_by_its_name(tmp_path):
    # Red for: "has no split 'train'; it has 'reviews'" for the file that everybody has.
    source = table(tmp_path / "reviews.csv", [f"t{i};{'ab'[i % 2]}" for i in range(50)], header="Text;Label")
    assert [len(read_text(source, split).texts) for split in ("train", "validation", "test")] == [30, 10, 10]
    assert len(read_text(source, "reviews").texts) == 50
    assert len(read_ood(source.dataset, "test").ood) == 50
    assert len(read_any_text(source.dataset, None, None)) == 50


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tlabel\nwell, done\tgood\n"),
        ("a.csv", '\ufefftext,label\r\n"well, done",good\r\n'),
        ("a.csv", "text;label\nwell, done;good\n"),
        ("a.json", '[{"text": "well, done", "label": "good"}]'),
        ("a.json", '{"data": [{"text": "well, done", "label": "good"}]}'),
        ("a.jsonl", '{"Sentence": "well, done", "LABEL": "good"}\n\n'),
    ],
)
def test_the_usual_formats_are_read(tmp_path, name, content):
    # Red for: a byte order mark or a carriage return in a name, a delimiter that is taken for text.
    (tmp_path / name).write_bytes(content.encode())
    data = read_text(options(str(tmp_path / name)), "a")
    assert (data.texts, data.labels) == (["well, done"], ["good"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"text,label\ngood\nfilm, fine,pos\n", r"line 2 of '.*a\.csv'.*1 fields and the header has 2"),
        ("a.csv", b"text,label\nok,neg\n\nfilm, fine,pos\n", r"line 4 .*3 fields .*comma without quotes"),
        ("a.csv", b"text,label,text\na,b,c\n", "two columns of the name 'text'"),
        ("a.csv", "text,label\nna\u00efve,b\n".encode("cp1252"), "not in UTF-8: line 2 has the byte 0xef.*cp1252"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "not in UTF-8: line 1 has the byte 0xff.*UTF-16"),
        ("a.csv", b'text,label\n"never closed,b\n', "from line 2 on"),
        ("a.jsonl", b'{"text": "\\ud83d", "label": "a"}\n', "line 1 .*half of a surrogate pair"),
        ("a.jsonl", b'{"text": "b", "label": "a"}\n[1]\n', "line 2 .*not a JSON object"),
        ("a.json", b'"text"', "should hold a list of objects"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.xlsx", b"", "not a file that ends in .csv, .tsv, .jsonl, .json"),
    ],
)
def test_a_file_that_would_be_read_wrongly_is_refused_with_its_line(tmp_path, name, content, words):
    # Red for: an unquoted comma that moves the label, text of another encoding, half of a file behind an open quote.
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SwagError, match=words):
        read_text(options(str(tmp_path / name)), "a")


def test_a_field_may_be_long_and_hold_every_kind_of_line_break(tmp_path):
    # Red for: csv's limit of 131,072 characters, and lines that end where only Unicode says so.
    odd = "one\u2028two\x0cthree\x85four"
    source = table(tmp_path / "a.csv", [f"{'x' * 200_000},a", f'"{odd}\nfive",b'])
    assert [len(text) for text in read_text(source, "a").texts] == [200_000, len(odd) + 5]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "seq.in").write_bytes(f"{odd}\r\nsix\n".encode())
    (tmp_path / "train" / "label").write_text("a\nb\n")
    (tmp_path / "a.csv").unlink()
    assert [example.text for example in read_any_text(str(tmp_path), "train", None)] == [odd, "six"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, "1", 1.0, "1.0", " 2 "], ["1", "1", "1", "1", "2"]),
        (["joy", None, "", "  ", float("nan")], ["joy", None, None, None, None]),
        (["0", "nan", "1"], ["0", None, "1"]),
        (["1", "one", "1_0"], ["1", "one", "1_0"]),
        ([True, False], ["True", "False"]),
        (["inf", "1"], ["inf", "1"]),
        ([], []),
    ],
)
def test_labels_are_class_names_however_they_are_written(labels, names):
    # Red for: "1" and "1.0" as two classes, a class "nan", a class of empty texts.
    assert class_names_of(labels, "x") == names


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["0.5", "2.0", "1.25"], "0.5 is not whole: that is a regression"),
        ([3.5, 4], "3.5 is not whole"),
        ([["joy", "love"], ["joy"]], "several labels"),
        ([(0, 1, 1)], "several labels"),
        ([np.array([0, 1])], "several labels"),
        ([{"joy": 1}], "several labels"),
    ],
)
def test_labels_of_another_task_are_refused_with_what_to_do(labels, words):
    # Red for: 26 classes from 26 scores, a class named "['joy', 'love']".
    with pytest.raises(SwagError, match=words):
        class_names_of(labels, "x")


def test_examples_without_label_are_left_out_and_counted(tmp_path, monkeypatch):
    # Red for: a class "None", int2str(-1), or examples that vanish without a word.
    source = options(jsonl(tmp_path / "a.jsonl", [("train", "a", "x"), ("train", "b", None), ("train", "c", "y")]))
    with pytest.warns(UserWarning, match="1 of 3 examples .* no label and are left out, the first in line 2 of"):
        assert read_text(source, "train").texts
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pay", "ask"])})
    splits = {
        "train": datasets.Dataset.from_dict({"text": list("abc"), "label": [0, -1, None]}, features=features),
        "test": datasets.Dataset.from_dict({"text": list("de"), "label": [-1, -1]}, features=features),
        "validation": datasets.Dataset.from_dict({"text": ["f"], "label": [1]}, features=features),
    }
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha="5" * 40, siblings=[]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: datasets.DatasetDict(splits))
    with pytest.warns(UserWarning, match="2 of 3 examples .*example 2 of the split 'train'"):
        assert read_text(options("user/data"), "train").labels == ["pay"]
    with pytest.raises(SwagError, match="None of the 2 examples in 'user/data' .test. has a label"):
        read_text(options("user/data"), "test")


def test_a_subset_is_balanced_and_chosen_by_the_seed():
    # Red for: the first rows of the file, or classes in the proportion of the data.
    targets = np.array([0] * 30 + [1] * 5)
    one, two = balanced(targets, 8, seed=1), balanced(targets, 8, seed=2)
    assert sorted(targets[one].tolist()) == [0] * 4 + [1] * 4
    assert one.tolist() != two.tolist()
    assert np.array_equal(one, balanced(targets, 8, seed=1))
    assert one.tolist() == sorted(one.tolist())


def test_a_pipe_is_refused_and_the_name_of_a_split_is_cut_in_the_message(tmp_path):
    # Red for: a command that waits for ever, or a message of 100,000 letters.
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SwagError, match="not a regular file"):
        read_text(options(str(tmp_path / "pipe.csv")), "train")
    source = jsonl(tmp_path / "task.jsonl", [("a" * 100_000, "text", "yes")])
    with pytest.raises(SwagError, match="has no split 'test'") as caught:
        read_text(options(source), "test")
    assert len(str(caught.value)) < 700
