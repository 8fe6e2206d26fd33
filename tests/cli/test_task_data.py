"""`swag-trainer tune` and `evaluate` with images, with questions about contexts, and with the pairs of natural-language inference."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from answering import examples, save_answering
from PIL import Image
from task_posteriors import collect, save_posteriors
from transformers import BertForQuestionAnswering, BertTokenizerFast, pipeline

from swag_trainer import SwagError, load_posterior
from swag_trainer.cli.class_numbers import ClassNumbers
from swag_trainer.cli.main import main
from swag_trainer.cli.text_sources import Row
from swag_trainer.evaluation.measurement import Measurement

QUICK = ["--num-samples", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def folders(base_folder, tmp_path_factory):
    """Posteriors of a ViT and of a classifier of NLI, among others."""
    return save_posteriors(base_folder, tmp_path_factory.mktemp("tasks"))


def lines_of(file, rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_images(folder, count, *, offset=0):
    """Images of 12 x 12 pixels in a folder for each of the classes of the ViT; returns their paths and classes."""
    generator, made = np.random.default_rng(offset), []
    for index in range(count):
        file = folder / f"LABEL_{index % 3}" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (12, 12, 3)).astype(np.uint8)).save(file)
        made.append((file, index % 3))
    return made


def measured(tmp_path, model, data, *options):
    file = tmp_path / "results.json"
    command = ["evaluate", model, "--dataset", str(data), *QUICK, "--num-resamples", "2", "--map-weights", "adapter"]
    assert main([*command, "--output", str(file), "--overwrite", *options]) == 0
    return Measurement.read(file)


@pytest.mark.filterwarnings("ignore:On 24 examples", "ignore:Prediction sets")
def test_images_in_a_folder_for_each_class_tune_and_are_measured(folders, tmp_path, capsys):
    # Red for: classes numbered by the folders that a split happens to have, a path from elsewhere than its table, OOD images that need a
    # class, another preparation than the pipeline's, images left out in silence: below a link, or deeper than classes are.
    data, model = tmp_path / "data", str(tmp_path / "tuned")
    save_images(data / "validation", 24)
    test = [pair for pair in save_images(data / "test", 8, offset=1) if pair[1] > 0]
    for file in (data / "test/LABEL_0").iterdir():
        file.unlink()
    assert main(["tune", folders.images, "--dataset", str(data), "--output", model, *QUICK]) == 0
    assert load_posterior(model).tuning.num_examples == 24
    other = tmp_path / "other"
    other.mkdir()
    for number, (file, _) in enumerate(save_images(tmp_path / "made", 3, offset=2)):
        file.rename(other / f"{number}.png")
    rows = tmp_path / "rows.parquet"
    found = measured(tmp_path, folders.images, data, "--ood", str(other), "--rows", str(rows))
    assert (found.num_examples, found.num_ood) == (len(test), 3)
    classify = pipeline("swag-image-classification", model=folders.images, scale=0, device="cpu", top_k=3)
    nll = -np.mean(
        [
            np.log(next(one["score"] for one in ranking if one["label"] == f"LABEL_{label}"))
            for (_, label), ranking in zip(test, classify([str(file) for file, _ in test]), strict=True)
        ]
    )
    assert found.metrics["SWA"]["nll"].value == pytest.approx(nll, rel=1e-5)
    assert pq.read_table(rows).to_pylist()[0]["text"] == "test/LABEL_1/1.png"
    lines_of(data / "test.jsonl", [{"file_name": f"test/LABEL_{label}/{file.name}", "label": label} for file, label in test])
    table = measured(tmp_path, folders.images, data, "--methods", "SWA")
    assert table.metrics["SWA"]["nll"].value == pytest.approx(nll, rel=1e-6)
    (data / "text.png").write_text("no image")
    for broken, words in (
        ({"image": "nothing.png", "label": 0}, "there is no image 'nothing.png' in"),
        ({"image": "text.png", "label": 0}, "it has no image that can be read"),
        ({"image": "text.png", "label": 3}, "or its number from 0"),
        ({"text": "good", "label": 0}, "--text-column names it"),
        ({"image": "text.png"}, "--label-column names it"),
        ({"image": 3, "label": 0}, "it has no image that can be read"),
    ):
        lines_of(data / "test.jsonl", [broken])
        assert main(["evaluate", folders.images, "--dataset", str(data)]) == 1
        assert words in (shown := capsys.readouterr().err) and "line 1 of" in shown, shown
    lines_of(data / "test.jsonl", [{"image": str(test[0][0]), "label": "-1"}])
    assert main(["evaluate", folders.images, "--dataset", str(data)]) == 1
    assert "None of the 1 examples has a label" in capsys.readouterr().err
    (data / "test.jsonl").unlink()
    (data / "test/LABEL_0").rmdir()
    (data / "test/LABEL_0").symlink_to(data / "validation/LABEL_0")
    (data / "test/LABEL_1/.hidden").mkdir()
    test[0][0].rename(data / "test/LABEL_1/.hidden/x.png")
    assert measured(tmp_path, folders.images, data, "--methods", "SWA").num_examples == len(test) - 1 + 8
    (data / "test/LABEL_1/more").mkdir()
    test[1][0].rename(data / "test/LABEL_1/more/x.png")
    assert main(["evaluate", folders.images, "--dataset", str(data)]) == 1
    assert "lies deeper than SPLIT/CLASS/IMAGE" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", folders.images, "--dataset", str(tmp_path / "empty")]) == 1
    assert "has no images" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:On .* examples")
def test_questions_about_contexts_tune_and_are_measured_by_start_and_end(tmp_path, capsys):
    # Red for: windows of another length than the pipeline's, the start of an answer taken for its end, windows of one context that count
    # as several questions.
    base = save_answering(tmp_path / "reads/base")
    reads = collect(BertForQuestionAnswering.from_pretrained(base), base.parent, BertTokenizerFast.from_pretrained(base))
    data, model = tmp_path / "data", str(tmp_path / "tuned")
    lines_of(data / "validation.jsonl", examples() * 4)
    lines_of(data / "test.jsonl", examples())
    assert main(["tune", reads, "--dataset", str(data), "--output", model, *QUICK]) == 0
    assert "Thresholds" not in capsys.readouterr().out
    assert load_posterior(model).tuning.num_examples == 24
    rows = tmp_path / "rows.parquet"
    found = measured(tmp_path, reads, data, "--methods", "SWA", "--rows", str(rows))
    assert found.num_examples == 6
    answer = pipeline("swag-question-answering", model=reads, scale=0, device="cpu")
    losses = []
    for row in (row for example in examples() for row in answer.window_encoder().training_rows(example)):
        allowed = torch.tensor(row.pop("answerable_tokens")).bool()
        start, end = row.pop("start_positions"), row.pop("end_positions")
        with torch.no_grad():
            outputs = answer.model(**{name: torch.tensor([value]) for name, value in row.items()})
        for logits, place in ((outputs.start_logits, start), (outputs.end_logits, end)):
            losses.append(-logits[0].masked_fill(~allowed, -torch.inf).log_softmax(-1)[place].item())
    assert found.metrics["SWA"]["nll"].value == pytest.approx(np.mean(losses), rel=1e-4)
    written = pq.read_table(rows).to_pylist()
    assert len(written) == len(losses) and sorted({row["example"] for row in written}) == list(range(6))
    assert main(["evaluate", reads, "--dataset", str(data), "--ood", str(data)]) == 1
    assert "leave it out" in capsys.readouterr().err
    assert main(["evaluate", reads, "--dataset", str(data), "--label-column", "answers"]) == 1
    assert "--label-column has no meaning" in capsys.readouterr().err
    for answers, words in (
        (None, '"answers" is'),
        ({"text": "film", "answer_start": [5]}, '"answers" is'),
        ({"text": ["film"], "answer_start": [-4]}, "does not stand at character -4"),
        ({"text": ["film"], "answer_start": ["5"]}, "does not stand at character 5"),
    ):
        lines_of(data / "test.jsonl", [{"question": "was", "context": "good film", "answers": answers}])
        assert main(["evaluate", reads, "--dataset", str(data)]) == 1
        assert words in (shown := capsys.readouterr().err) and "line 1 of" in shown, shown
    lines_of(data / "validation.jsonl", examples()[3:4] * 19)
    assert main(["tune", reads, "--dataset", str(data), "--output", model, "--overwrite", *QUICK]) == 1
    assert "Tuning on 19 examples" in capsys.readouterr().err  # of many windows


@pytest.mark.filterwarnings("ignore:On 24 examples", "ignore:Prediction sets")
def test_pairs_of_nli_tune_and_measure_a_model_for_zero_shot_classification(folders, tmp_path, capsys):
    # Red for: a hypothesis that is left out, classes in another order, a task that only `predict` knows.
    task, names = ["--task", "zero-shot-classification"], ["contradiction", "neutral", "entailment"]
    pairs = [
        {"premise": f"the {noun} was {word}", "hypothesis": f"a {other} {noun}", "label": names[(len(word) + len(other)) % 3]}
        for noun in ("film", "plot")
        for word in ("good", "dull", "funny")
        for other in ("bad", "great", "sad", "slow")
    ]
    data, model = tmp_path / "data", str(tmp_path / "tuned")
    lines_of(data / "validation.jsonl", pairs)
    test = [
        {"sentence1": pair["premise"], "sentence2": pair["hypothesis"], "label": names.index(pair["label"])}
        for pair in pairs[:5]
    ]
    lines_of(data / "test.jsonl", test)
    assert main(["tune", folders.nli, "--dataset", str(data), "--output", model, *task, *QUICK]) == 0
    assert load_posterior(model).tuning.num_examples == 24
    found = measured(tmp_path, folders.nli, data, *task, "--methods", "SWA")
    classify = pipeline("swag-text-classification", model=folders.nli, scale=0, device="cpu", top_k=None)
    ranked = classify([{"text": row["sentence1"], "text_pair": row["sentence2"]} for row in test])
    scores = [
        next(one["score"] for one in ranking if one["label"] == names[row["label"]])
        for row, ranking in zip(test, ranked, strict=True)
    ]
    assert found.metrics["SWA"]["nll"].value == pytest.approx(-np.log(scores).mean(), rel=1e-5)
    unclear = {**test[0], "label": -1}
    named = [{**row, "label_text": names[row["label"]].upper(), "label": (row["label"] + 1) % 3} for row in test]
    lines_of(data / "test.jsonl", [*named, {**unclear, "label_text": "-"}])
    again = measured(tmp_path, folders.nli, data, *task, "--methods", "SWA")
    assert "1 of 6 examples have no label" in capsys.readouterr().err
    assert again.metrics["SWA"]["nll"].value == found.metrics["SWA"]["nll"].value
    others = [{**test[0], "sentence2": f"a {word} plot", "subject": "oos"} for word in ("late", "mild")]
    lines_of(tmp_path / "other.jsonl", [*others, {**test[0], "sentence2": "a short end"}])  # a subject is no label
    assert measured(tmp_path, folders.nli, data, *task, "--ood", str(tmp_path / "other.jsonl")).num_ood == 3
    other = [{**test[0], "sentence2": f"a {word} plot", "label": "oos"} for word in ("very bad", "so slow")]
    lines_of(tmp_path / "other.jsonl", [*other, {**test[0], "sentence2": "a short end"}])
    assert measured(tmp_path, folders.nli, data, *task, "--ood", str(tmp_path / "other.jsonl")).num_ood == 2
    for row, words in (
        ({"premise": "good", "label": 0}, "'hypothesis' or 'sentence2'"),
        ({"premise": "good", "hypothesis": "bad " * 80, "label": 0}, "its hypothesis has 83 tokens, and the model takes 64"),
        ({"premise": "good", "hypothesis": "bad " * 61, "label": 0}, "its hypothesis has 64 tokens"),
    ):
        lines_of(data / "test.jsonl", [row])
        assert main(["evaluate", folders.nli, "--dataset", str(data), *task]) == 1
        assert words in (shown := capsys.readouterr().err), shown


def test_labels_are_names_before_they_are_numbers():
    # Red for: stars from 1 to 3 that are counted from 0, names in another order than the recorded ones, "1" beside 1 as another class.
    def classes(*names, recorded=None, labels=None):
        config = SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names))
        return ClassNumbers(SimpleNamespace(labels=labels, label_column=None), config, recorded=recorded)

    row = Row({}, "line 1")
    stars = classes("1", "2", "3")
    assert [stars.number(value, row) for value in (1, "1", "3", 3)] == [0, 0, 2, 2]
    for value in (0, "0", 4, True, 1.0, None):
        with pytest.raises(SwagError, match="has the label"):
            stars.number(value, row)
    signs = classes("-1", "0", "1")
    found = signs.labelled([Row({"label": value}, "line 1") for value in ("-1", -1, "1")], needs_labels=True)
    assert [number for _, number in found] == [0, 0, 2]  # none is taken for a label that is missing
    moods = classes("Good", "bad")
    assert [moods.number(value, row) for value in ("good", "BAD", 0, "1")] == [0, 1, 0, 1]
    with pytest.raises(SwagError, match="Every class would be taken for another one"):
        classes("a", "b", recorded=["a", "b"], labels=["b", "a"])
    assert classes("LABEL_0", "LABEL_1", labels=["b", "a"]).names == ["b", "a"]
