import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from swag_trainer import SwagError

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def text_data():
    specification = importlib.util.spec_from_file_location("text_data", EXAMPLES / "text_data.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["text_data"] = module
    specification.loader.exec_module(module)
    return module


def jsonl(path, rows):
    path.write_text("".join(json.dumps(dict(zip(("split", "text", "intent"), row, strict=True))) + "\n" for row in rows))
    return str(path)


ROWS = [("train", f"a{i}", "yes") for i in range(10)] + [("train", f"b{i}", "no") for i in range(10)]
ROWS += [("val", "c", "no"), ("test", "d", "yes"), ("oos_test", "e", "oos"), ("oos_train", "f", "oos")]


def test_a_task_has_the_texts_and_the_class_numbers_of_three_splits_and_ood_text_of_the_test_split(text_data, tmp_path):
    # Red for: training on out-of-distribution text, a class of its own for it, targets of another split, classes in the order of the file.
    task = text_data.read_task(jsonl(tmp_path / "task.jsonl", ROWS))
    assert (task.name, task.labels) == ("task.jsonl", ["no", "yes"])
    assert task.ood == ["e"]
    assert task.texts["validation"] == ["c"] and task.texts["test"] == ["d"]
    assert len(task.texts["train"]) == 20
    assert {split: [task.labels[target] for target in task.targets[split]] for split in ("validation", "test")} == {
        "validation": ["no"],
        "test": ["yes"],
    }
    assert task.targets["train"].tolist() == [int(text[0] == "a") for text in task.texts["train"]]


def test_validation_rows_that_come_from_the_training_rows_are_a_balanced_fifth_and_always_the_same(text_data, tmp_path):
    # Red for: validation rows that are trained on as well, or others than those that the metrics in the README were tuned on.
    (tmp_path / "train.csv").write_text("text,category\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(20)))
    (tmp_path / "test.csv").write_text('text,category\n"x, y",a\n')
    task = text_data.read_task(str(tmp_path))
    assert (len(task.texts["train"]), task.texts["test"]) == (16, ["x, y"])
    assert task.texts["validation"] == ["t4", "t6", "t13", "t19"]  # what the first version of this reader chose
    assert not set(task.texts["train"]) & set(task.texts["validation"])
    assert sorted(task.targets["validation"]) == [0, 0, 1, 1]


def test_ood_text_of_a_second_source_takes_the_place_of_the_task_s_own(text_data, tmp_path):
    # Red for: out-of-distribution text of both sources, of the training rows, or more of it than asked for.
    source = jsonl(tmp_path / "task.jsonl", ROWS)
    rows = [("test", "one", "oos"), ("train", "two", "oos"), ("test", "three", "yes"), ("test", "four", "out_of_scope")]
    marked, unmarked = jsonl(tmp_path / "marked.jsonl", rows), jsonl(tmp_path / "unmarked.jsonl", rows[2:3])
    assert text_data.read_task(source, ood_source=marked).ood == ["one", "four"]
    assert text_data.read_task(source, ood_source=marked, max_ood=1).ood == ["one"]
    assert text_data.read_task(source, ood_source=unmarked).ood == ["three"]


def test_a_data_set_of_the_hub_is_read_by_its_name(text_data, monkeypatch):
    # Red for: a configuration that is not passed on, a name that lacks the user.
    import datasets
    from huggingface_hub import HfApi

    features = datasets.Features({"utterance": datasets.Value("string"), "label": datasets.ClassLabel(names=["pay", "oos"])})
    splits = {
        name: datasets.Dataset.from_dict({"utterance": [f"{name} 1", f"{name} 2"], "label": [0, 1]}, features=features)
        for name in ("train", "validation", "test")
    }
    asked = set()
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha="5" * 40, siblings=[]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.add(names) or datasets.DatasetDict(splits))
    task = text_data.read_task("user/intents:plus")
    assert asked == {("user/intents", "plus")}
    assert (task.name, task.labels, task.ood) == ("user/intents:plus", ["pay"], ["test 2"])
    assert task.texts == {"train": ["train 1"], "validation": ["validation 1"], "test": ["test 1"]}


def test_a_subset_is_balanced_and_chosen_by_the_seed(text_data, tmp_path):
    # Red for: the first rows of the file, rows and targets that no longer belong together, test rows of a seed.
    task = text_data.read_task(jsonl(tmp_path / "task.jsonl", ROWS))
    one, two = task.subset(8, None, seed=1), task.subset(8, None, seed=2)
    assert sorted(one.targets["train"].tolist()) == [0] * 4 + [1] * 4
    assert all((text[0] == "a") == (target == 1) for text, target in zip(one.texts["train"], one.targets["train"], strict=True))
    assert one.texts["train"] != two.texts["train"]
    assert np.array_equal(one.targets["train"], task.subset(8, None, seed=1).targets["train"])
    task = text_data.read_task(jsonl(tmp_path / "more.jsonl", [*ROWS, *(("test", letter, "no") for letter in "hijklm")]))
    measured = {tuple(task.subset(None, None, seed=seed, test_rows=2).texts["test"]) for seed in range(6)}
    assert [len(texts) for texts in measured] == [2]  # the same two for every seed


def test_data_that_makes_no_task_is_refused(text_data, tmp_path):
    # Red for: measuring on nothing, or rows of a class without training rows that are left out until the metrics look right.
    with pytest.raises(SwagError, match="has no split 'test'"):
        text_data.read_task(jsonl(tmp_path / "task.jsonl", ROWS[:21]))
    with pytest.raises(SwagError, match=r"1 examples of 'more.jsonl' \(test\) have the label 'unseen'"):
        text_data.read_task(jsonl(tmp_path / "more.jsonl", [*ROWS, ("test", "g", "unseen")]))


@pytest.mark.parametrize("example", ["abstention", "active_learning", "distribution_shift"])
def test_an_example_ends_with_an_error_message_and_no_traceback(example, tmp_path, monkeypatch):
    # Red for: a page of Python for a file that has no test rows.
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import quickstart

    # What it silences would stay silent for the tests after this one.
    monkeypatch.setattr(quickstart, "quiet_libraries", lambda: None)
    source = jsonl(tmp_path / "task.jsonl", ROWS[:21])
    monkeypatch.setattr(sys, "argv", [example, "--dataset", source])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    assert end.value.code == f"{source!r} has no split 'test'; it has 'train', 'validation'."
