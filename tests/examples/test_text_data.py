import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

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
ROWS += [("val", "c", "no"), ("test", "d", "yes"), ("oos_test", "e", "oos"), ("oos_train", "f", "oos"), ("test", "g", "unseen")]


def test_foreign_rows_are_kept_apart_and_only_those_of_the_test_split_are_used(text_data, tmp_path):
    # Red for: training on foreign text, or a class of its own for it.
    task = text_data.read_task(jsonl(tmp_path / "task.jsonl", ROWS))
    assert task.labels == ["no", "yes"]
    assert task.foreign == ["e"]
    assert task.texts["validation"] == ["c"] and task.texts["test"] == ["d"]
    assert len(task.texts["train"]) == 20
    assert [task.labels[target] for target in task.targets["test"]] == ["yes"]


def test_a_folder_of_csv_files_gets_its_validation_rows_from_the_training_rows(text_data, tmp_path):
    # Red for: validation rows that are trained on as well.
    (tmp_path / "train.csv").write_text("text,category\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(20)))
    (tmp_path / "test.csv").write_text('text,category\n"x, y",a\n')
    task = text_data.read_task(str(tmp_path))
    assert (len(task.texts["train"]), len(task.texts["validation"]), task.texts["test"]) == (16, 4, ["x, y"])
    assert not set(task.texts["train"]) & set(task.texts["validation"])
    assert sorted(task.targets["validation"]) == [0, 0, 1, 1]


def test_a_folder_of_parallel_text_and_label_files_is_read_line_by_line(text_data, tmp_path):
    # Red for: labels of other lines.
    for split in ("train", "valid", "test"):
        (tmp_path / "task" / split).mkdir(parents=True)
        (tmp_path / "task" / split / "seq.in").write_text("one\ntwo\n")
        (tmp_path / "task" / split / "label").write_text("b\na\n")
    task = text_data.read_task(str(tmp_path / "task"), foreign_source=jsonl(tmp_path / "other.jsonl", ROWS))
    assert task.texts["validation"] == ["one", "two"] and task.targets["validation"].tolist() == [1, 0]
    assert task.foreign == ["e"]


def test_a_data_set_of_the_hub_is_read_by_its_name_and_its_class_names(text_data, monkeypatch):
    # Red for: class numbers taken for names, a configuration that is not passed on, a split under another name left out.
    import datasets

    features = datasets.Features({"utterance": datasets.Value("string"), "label": datasets.ClassLabel(names=["pay", "oos"])})
    splits = {
        name: datasets.Dataset.from_dict({"utterance": [f"{name} 1", f"{name} 2"], "label": [0, 1]}, features=features)
        for name in ("train", "validation", "test")
    }
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or datasets.DatasetDict(splits))
    task = text_data.read_task("user/intents:plus")
    assert asked == [("user/intents", "plus")]
    assert task.labels == ["pay"] and task.foreign == ["test 2"]
    assert task.texts == {"train": ["train 1"], "validation": ["validation 1"], "test": ["test 1"]}


def test_a_subset_is_balanced_and_chosen_by_the_seed(text_data, tmp_path):
    # Red for: the first rows of the file, or rows and targets that no longer belong together.
    task = text_data.read_task(jsonl(tmp_path / "task.jsonl", ROWS))
    one, two = task.subset(8, None, seed=1), task.subset(8, None, seed=2)
    assert sorted(one.targets["train"].tolist()) == [0] * 4 + [1] * 4
    assert all((text[0] == "a") == (target == 1) for text, target in zip(one.texts["train"], one.targets["train"], strict=True))
    assert one.texts["train"] != two.texts["train"]
    assert np.array_equal(one.targets["train"], task.subset(8, None, seed=1).targets["train"])
    task = text_data.read_task(jsonl(tmp_path / "more.jsonl", [*ROWS, *(("test", letter, "no") for letter in "hijklm")]))
    measured = [task.subset(None, None, seed=seed, test_rows=2).texts["test"] for seed in (1, 2)]
    assert measured[0] == measured[1] and len(measured[0]) == 2


def test_a_task_without_test_rows_is_refused(text_data, tmp_path):
    # Red for: measuring on nothing.
    with pytest.raises(SystemExit, match="no rows for the split 'test'"):
        text_data.read_task(jsonl(tmp_path / "task.jsonl", ROWS[:20]))
