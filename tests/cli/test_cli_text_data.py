import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi

from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_data import balanced, read_any_text, read_ood, read_text
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
    assert read_any_text(source, "test", None) == ["d", "e", "g"]
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
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha="5" * 40))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or datasets.DatasetDict(splits)
    )
    test = read_text(options("user/intents:plus"), "test")
    assert asked == [(("user/intents", "plus"), {"revision": "5" * 40})]
    assert (test.name, test.revision) == ("user/intents:plus", "5" * 40)
    assert (test.texts, test.labels, test.ood) == (["test 1"], ["pay"], ["test 2"])


def test_data_that_cannot_be_read_is_refused_with_the_reason(tmp_path, hub):
    # Red for: a traceback, or rows without text that become the word None.
    source = jsonl(tmp_path / "task.jsonl", ROWS)
    with pytest.raises(SwagError, match="has no split 'dog'; it has 'test', 'train', 'validation'"):
        read_text(options(source), "dog")
    with pytest.raises(SwagError, match="--text-column names it"):
        read_text(options(jsonl(tmp_path / "odd.jsonl", [("train", "a", "b")], ("split", "body", "intent"))), "train")
    odd = options(str(tmp_path / "odd.jsonl"), text_column="body")
    assert read_any_text(odd.dataset, "train", "body") == ["a"]
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    with pytest.raises(SwagError, match="broken.jsonl"):
        read_text(options(str(tmp_path / "broken.jsonl")), "broken")
    (tmp_path / "null.jsonl").write_text('{"text": null, "label": "a"}\n')
    with pytest.raises(SwagError, match="without text or without label"):
        read_text(options(str(tmp_path / "null.jsonl")), "null")
    with pytest.raises(SwagError, match="neither a file or folder"):
        read_text(options("no such/folder/here"), "train")
    with pytest.raises(SwagError, match="user/no-such-data"):
        read_text(options("user/no-such-data"), "train")


def test_a_subset_is_balanced_and_chosen_by_the_seed():
    # Red for: the first rows of the file, or classes in the proportion of the data.
    targets = np.array([0] * 30 + [1] * 5)
    one, two = balanced(targets, 8, seed=1), balanced(targets, 8, seed=2)
    assert sorted(targets[one].tolist()) == [0] * 4 + [1] * 4
    assert one.tolist() != two.tolist()
    assert np.array_equal(one, balanced(targets, 8, seed=1))
    assert one.tolist() == sorted(one.tolist())
