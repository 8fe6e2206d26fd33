"""`--task`: which task a posterior is for, and `swag-trainer predict` with images, labels of the call and questions."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from answering import examples, save_answering
from choices import choice_tokenizer, language_model, questions, save_base
from command_line import DEMO
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from tagging import TAGS, TEXTS, save_tagger
from task_posteriors import collect, save_posteriors
from trajectories import random_posterior
from transformers import (
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertTokenizerFast,
    ViTImageProcessorPil,
    pipeline,
)

from swag_trainer import ChoiceSettings, MonteCarloPredictor, SwagError, load_posterior
from swag_trainer.cli.classifier import load_classifier
from swag_trainer.cli.main import main
from swag_trainer.cli.options import ClassifierOptions
from swag_trainer.evaluation.measurement import Measurement
from swag_trainer.prediction.task_resolution import resolve_task


@pytest.fixture(scope="module")
def folders(base_folder, tmp_path_factory):
    """Posteriors of a ViT, of an encoder for multiple choice, of a BERT without a head, and of a classifier of NLI."""
    return save_posteriors(base_folder, tmp_path_factory.mktemp("tasks"))


def predicted(capsys, *arguments):
    code = main(["predict", *map(str, arguments), "--device", "cpu", "--num-samples", "3"])
    shown = capsys.readouterr()
    return [json.loads(line) for line in shown.out.splitlines()] if code == 0 else shown.err


def test_images_are_predicted_by_their_paths(folders, tmp_path, capsys):
    # Red for: a path that is refused as a text or classified as one, five labels where one is asked for, a missing image found late.
    generator, paths = np.random.default_rng(0), []
    for index in range(2):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(generator.integers(0, 255, (12, 12, 3)).astype(np.uint8)).save(paths[-1])
    expected = pipeline("swag-image-classification", model=folders.images, num_samples=3, device="cpu")(paths, top_k=1)
    found = predicted(capsys, folders.images, *paths)
    assert [row["text"] for row in found] == paths
    assert [row["label"] for row in found] == [one[0]["label"] for one in expected]
    assert [row["score"] for row in found] == pytest.approx([one[0]["score"] for one in expected], abs=1e-6)
    (tmp_path / "list.txt").write_text("\n".join(paths) + "\n")
    assert [row["score"] for row in predicted(capsys, folders.images, "--file", tmp_path / "list.txt")] == [
        row["score"] for row in found
    ]
    assert "There is no image 'nothing.png'" in predicted(capsys, folders.images, "nothing.png")


def test_labels_of_the_call_and_questions_with_their_choices_are_predicted(folders, tmp_path, capsys):
    # Red for: labels that are not passed on, a question without its choices, "sequence" beside the same text.
    labels = ["--candidate-labels", "good", "bad", "--task", "zero-shot-classification"]
    found = predicted(capsys, folders.nli, "the plot was dull", *labels)[0]
    assert found["text"] == "the plot was dull" and sorted(found["labels"]) == ["bad", "good"] and "sequence" not in found
    assert sum(found["scores"]) == pytest.approx(1)
    several = predicted(capsys, folders.nli, "the plot was dull", *labels, "--multi-label")[0]
    assert len(several["entropy"]) == 2
    assert "--candidate-labels LABEL" in predicted(capsys, folders.nli, "dull", "--task", "zero-shot-classification")
    assert "no argument 'candidate_labels'" in predicted(capsys, folders.nli, "dull", "--candidate-labels", "good")
    rows = questions(3)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = predicted(capsys, folders.questions, "--file", tmp_path / "questions.jsonl")
    expected = pipeline("swag-multiple-choice-encoder", model=folders.questions, num_samples=3, device="cpu")(rows)
    assert [(row["text"], row["choice"]) for row in found] == [
        (row["question"], one["choice"]) for row, one in zip(rows, expected, strict=True)
    ]
    assert found[0]["choices"] == rows[0]["choices"]
    assert "takes rows with a question" in predicted(capsys, folders.questions, "what was dull")


def test_the_task_is_asked_for_recorded_or_told_by_adapter_and_base(folders, capsys):
    # Red for: a guess of sequence classification, a record that is ignored, a raw KeyError for a task that there is not.
    def found(folder, given=None, **record):
        posterior = load_posterior(folder)
        return resolve_task(replace(posterior, record=replace(posterior.record, **record)), given=given, name=folder).name

    languages = load_posterior(folders.bare)
    adapter = replace(languages.adapter, config={**languages.adapter.config, "task_type": "CAUSAL_LM"})
    unnamed = replace(languages, adapter=adapter, record=replace(languages.record, task=None))
    assert resolve_task(unnamed, given=None, name="x").name == "swag-text-generation"
    assert found(folders.nli, task="swag-zero-shot-classification") == "swag-zero-shot-classification"
    assert found(folders.images) == found(folders.images, task=None) == "swag-image-classification"
    assert found(folders.questions, task=None) == "swag-multiple-choice-encoder"
    assert found(folders.nli, task=None) == "swag-text-classification"
    assert found(folders.nli, given="zero-shot-classification") == "swag-zero-shot-classification"
    assert found(folders.nli, given="swag-zero-shot-classification", task=None) == "swag-zero-shot-classification"
    with pytest.raises(SwagError, match="What is the posterior .*task_type=None.*--task on the command line, one of"):
        found(folders.bare)
    assert "known tasks: " in predicted(capsys, folders.images, "x", "--task", "speech")
    assert "which needs another kind of model" in predicted(capsys, folders.images, "x", "--task", "text-classification")


def test_commands_for_labelled_text_say_what_to_do_instead(folders, tmp_path, capsys):
    # Red for: a traceback of a head that does not fit, after minutes of reading.
    with pytest.raises(SwagError, match="is for classifiers of texts"):
        load_classifier(ClassifierOptions(model=folders.images))
    assert main(["fit", folders.images, "--dataset", str(DEMO), "--output", str(tmp_path / "fitted")]) == 1
    shown = capsys.readouterr().err
    assert "is for classifiers of texts" in shown and "'swag-image-classification'" in shown


@pytest.mark.filterwarnings("ignore:On 24 examples", "ignore:Prediction sets")
def test_questions_of_a_file_tune_a_model_for_multiple_choice(folders, tmp_path, capsys):
    # Red for: questions that are read as labelled text, sets for the two labels in the config, an answer that is not looked at.
    rows = questions(24)
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["tune", folders.questions, "--dataset", str(tmp_path), "--output", str(tmp_path / "tuned")]
    assert main([*command, "--num-samples", "2", "--levels", "0.5", "--device", "cpu"]) == 0
    assert "Prediction sets of 5 labels" in capsys.readouterr().out
    choose = pipeline("swag-multiple-choice-encoder", model=str(tmp_path / "tuned"), device="cpu")
    tuning, examples = choose.posterior.tuning, [choose.example(row) for row in rows]
    assert (tuning.dataset, tuning.split, tuning.num_examples) == (tmp_path.name, "validation", 24)
    predictor = MonteCarloPredictor(
        choose.model,
        choose.posterior,
        data_collator=choose.data_collator,
        scale=0,
        temperature=tuning.candidates[0].temperature,
    )
    probabilities = predictor.predict(examples).probabilities[np.arange(24), [row["answer"] for row in rows]]
    assert tuning.candidates[0].nll == pytest.approx(-np.log(probabilities).mean(), abs=1e-3)
    (tmp_path / "validation.jsonl").write_text('{"question": "good", "choices": ["bad", "slow"]}\n')
    assert main([*command, "--overwrite"]) == 1
    assert "has no right choice" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--train-split", "train"]) == 1
    assert "--train-split is for the OOD score" in capsys.readouterr().err


def test_questions_of_a_file_are_measured_with_what_they_were_tuned_on_and_with_shifted_ones(folders, tmp_path, capsys):
    # Red for: choices that a question lacks among the classes of its probabilities, temperatures from the questions that are measured,
    # labels of other questions, shifted questions that need an answer.
    data, shifted = tmp_path / "data", [{key: row[key] for key in ("question", "choices")} for row in questions(9)[6:]]
    data.mkdir()
    parts = {"test": questions(6), "validation": questions(24)}
    for name, rows in (*parts.items(), ("shifted", [{**row, "question": f"so {row['question']}"} for row in shifted])):
        place = tmp_path if name == "shifted" else data
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--dataset", str(data), "--validation-split", "validation", "--ood", str(tmp_path / "shifted.jsonl")]
    options += ["--num-samples", "2", "--num-resamples", "2", "--map-weights", "adapter"]
    written = ["--output", str(tmp_path / "results.json"), "--rows", str(tmp_path / "rows.parquet")]
    assert main(["evaluate", folders.questions, *options, *written, "--device", "cpu"]) == 0
    assert "Left out: 'TFB'" in capsys.readouterr().err
    measured = Measurement.read(tmp_path / "results.json")
    assert (measured.num_examples, measured.split) == (6, "test")
    choose = pipeline("swag-multiple-choice-encoder", model=folders.questions, scale=0, top_k=None, device="cpu")
    right = [
        next(one["score"] for one in ranking if one["label"] == "ABCDE"[row["answer"]])
        for row, ranking in zip(parts["test"], choose(parts["test"]), strict=True)
    ]
    assert measured.metrics["SWA"]["nll"].value == pytest.approx(-np.log(right).mean(), rel=1e-5)
    assert measured.metrics["MAP, temperature"]["nll"].value != measured.metrics["MAP"]["nll"].value
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert {len(row["probabilities"]) for row in rows} == {5} and sum(row["is_ood"] for row in rows) == 3 * len(
        measured.methods
    )
    options[options.index("--ood") + 1] = str(data / "test.jsonl")
    assert main(["evaluate", folders.questions, *options]) == 1
    assert "are also among those to measure" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:On 24 examples")
def test_tagged_words_of_a_file_tune_and_are_measured(tmp_path, capsys):
    # Red for: tags at other tokens than the first of a word, numbers and names that differ, tokens of a text taken for independent ones.
    base = save_tagger(tmp_path / "tags/base")
    tags = collect(BertForTokenClassification.from_pretrained(base), base.parent, BertTokenizerFast.from_pretrained(base))
    rows = [{"tokens": text.replace(",", "").split()} for text in TEXTS * 4]
    for row in rows:
        row["ner_tags"] = [TAGS[len(word) % len(TAGS)] for word in row["tokens"]]
    numbers = [{**row, "ner_tags": list(map(TAGS.index, row["ner_tags"]))} for row in rows[:6]]
    data = tmp_path / "data"
    data.mkdir()

    def write(name, lines):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

    write("validation", rows)
    write("test", numbers)
    tuned = str(tmp_path / "tuned")
    assert main(["tune", tags, "--dataset", str(data), "--num-samples", "2", "--output", tuned, "--device", "cpu"]) == 0
    assert "Thresholds" not in capsys.readouterr().out
    options = ["--dataset", str(data), "--num-samples", "2", "--num-resamples", "2", "--map-weights", "adapter"]
    assert main(["evaluate", tuned, *options, "--output", str(tmp_path / "results.json"), "--device", "cpu"]) == 0
    measured = Measurement.read(tmp_path / "results.json")
    assert (measured.num_examples, measured.split) == (6, "test") and "MAP, temperature" in measured.metrics
    tag = pipeline("swag-token-classification", model=tags, scale=0, device="cpu")
    tokenizer, logs = tag.tokenizer, []
    for row in numbers:
        encoded = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
        starts = [encoded.word_to_tokens(0, word).start for word in range(len(row["tokens"]))]
        with torch.no_grad():
            logs.append(tag.model(**encoded).logits[0].log_softmax(-1)[starts, row["ner_tags"]])
    assert measured.metrics["MAP"]["nll"].value == pytest.approx(-torch.cat(logs).mean().item(), rel=1e-4)
    for broken, words in (
        ({"tokens": ["good"], "ner_tags": ["X"]}, "has the tag 'X'"),
        ({"tokens": ["good"], "ner_tags": []}, "a tag for each of the 1 words"),
        ({"tokens": "good", "ner_tags": [0]}, "is a list of words"),
        ({"words": ["good"]}, "--label-column names it"),
        ({"tokens": ["good"], "ner_tags": [0], "pos_tags": [1]}, "--label-column says which of them it is"),
        ({"tokens": ["\ud83d"], "ner_tags": [0]}, "half of a surrogate pair"),
        ({"tokens": ["good"], "ner_tags": [-1]}, "or its number from 0"),
    ):
        write("test", [*numbers, broken])
        assert main(["evaluate", tuned, *options]) == 1
        assert words in (shown := capsys.readouterr().err) and "line 7 of" in shown
    write("test", [*numbers, {"tokens": ["good", "film"], "ner_tags": [-100, 0]}])
    rows_file = tmp_path / "rows.parquet"
    assert main(["evaluate", tuned, *options, "--methods", "SWA", "--rows", str(rows_file)]) == 0
    last = pq.read_table(rows_file).to_pylist()[-1]
    assert (last["text"], last["example"]) == ("film", 6)
    write("test", numbers)
    for option, words in (
        (["--ood", str(data)], "leave it out"),
        (["--labels", "a"], "5 classes once"),
        (["--validation-split", "val", "--split", "validation"], "nothing may be fitted on what is measured"),
    ):
        assert main(["evaluate", tuned, *options, *option]) == 1
        assert words in capsys.readouterr().err


def test_a_rows_own_question_and_the_settings_of_the_posterior_are_used(tmp_path, capsys):
    # Red for: a passage in the column "text" that is asked for the question, five classes where the posterior was trained with three,
    # a loaded model that no longer knows what it was trained for.
    base = save_base("llama", tmp_path / "base")
    model = language_model("llama", base)
    posterior = random_posterior(model, spread=0.3)
    settings = ChoiceSettings(scoring="letters", max_choices=3).resolved(choice_tokenizer()).as_record()
    record = replace(posterior.record, task="swag-multiple-choice", task_settings=settings)
    replace(posterior, record=record).save_pretrained(tmp_path / "run")
    rows = [{**row, "choices": row["choices"][:3], "answer": 0, "text": "bad film"} for row in questions(24)]
    data = tmp_path / "data"
    data.mkdir()
    for name in ("validation", "test", "train"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, options = str(tmp_path / "run"), ["--dataset", str(data), "--num-samples", "2"]
    assert main(["tune", run, *options, "--levels", "0.5", "--output", str(tmp_path / "tuned")]) == 0
    assert "Prediction sets of 3 labels" in capsys.readouterr().out
    fits = ["--methods", "SWA", "TFB", "--train-split", "train", "--num-resamples", "2"]
    assert main(["evaluate", run, *options, *fits, "--output", str(tmp_path / "results.json")]) == 0
    choose = pipeline("swag-multiple-choice", model=run, scale=0, temperature=1.0, top_k=None, device="cpu")
    own = [{name: row[name] for name in ("question", "choices")} for row in rows]
    first = [next(one["score"] for one in ranking if one["label"] == "A") for ranking in choose(own)]
    measured = Measurement.read(tmp_path / "results.json").metrics
    assert measured["SWA"]["nll"].value == pytest.approx(-np.log(first).mean(), rel=1e-4) and "TFB" in measured
    capsys.readouterr()
    found = predicted(capsys, run, "--file", data / "test.jsonl", "--scale", "0")
    assert found[0]["question"] == rows[0]["question"] and found[0]["choice"] == choose(own[0])[0]["choice"]
    mixed = [rows[0] | {"answer": "B"}, rows[1] | {"choices": list("abcd")}, rows[2] | {"answer": 7}]
    (data / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    assert main(["predict", run, "--file", str(data / "mixed.jsonl"), "--scale", "0", "--device", "cpu"]) == 1
    shown = capsys.readouterr()  # an answer is not needed, and one question does not keep the others from being answered
    assert [json.loads(line)["choice"] for line in shown.out.splitlines()] == [
        choose(each)[0]["choice"] for each in (own[0], own[2])
    ]
    assert "1 of 3 examples have no prediction" in shown.err and "line 2 of" in shown.err and "4 choices" in shown.err
    only = str(data / "mixed.jsonl")
    assert main(["evaluate", run, "--dataset", only]) == 1
    assert "All of the only file is --split train." in capsys.readouterr().err


def test_an_image_processor_is_pushed_with_a_card_of_its_task(folders, hub, capsys):
    # Red for: images that others scale in another way, a card in the wrong drawer of the Hub.
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folders.images)
    assert main(["push", folders.images, "--repo", "user/tiny-vit-swag", "--base-model", "user/tiny-vit"]) == 0
    assert "preprocessor_config.json" in HfApi().list_repo_files("user/tiny-vit-swag")
    assert ModelCard.load("user/tiny-vit-swag").data.pipeline_tag == "image-classification"


def test_entities_of_texts_and_answers_of_questions_are_predicted(tmp_path, capsys):
    # Red for: one entity unpacked beside the text, a context or an id that is lost, options of one task given to another.
    tagger, reader = save_tagger(tmp_path / "tags/base"), save_answering(tmp_path / "reads/base")
    heads = ((BertForTokenClassification, tagger), (BertForQuestionAnswering, reader))
    tags, reads = (
        collect(head.from_pretrained(base), base.parent, BertTokenizerFast.from_pretrained(base)) for head, base in heads
    )
    found = predicted(capsys, tags, "good", TEXTS[1], "--aggregation-strategy", "first")
    expected = pipeline("swag-token-classification", model=tags, num_samples=3, device="cpu", aggregation_strategy="first")
    assert [row["text"] for row in found] == ["good", TEXTS[1]]
    assert [[each["word"] for each in row["entities"]] for row in found] == [
        [each["word"] for each in entities] for entities in expected(["good", TEXTS[1]])
    ]
    assert "has no risk" in predicted(capsys, tags, "good", "--risk", "0.1")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples()))
    found = predicted(capsys, reads, "--file", tmp_path / "questions.jsonl", "--handle-impossible-answer")
    answer = pipeline("swag-question-answering", model=reads, num_samples=3, device="cpu", handle_impossible_answer=True)
    for row, example, one in zip(found, examples(), answer(examples()), strict=True):
        assert {name: row[name] for name in ("id", "context", "answers")} == {
            name: example[name] for name in ("id", "context", "answers")
        }
        assert (row["text"], row["answer"]) == (example["question"], one["answer"]) and "input_id" not in row
    assert "takes rows with a question" in predicted(capsys, reads, "what was dull")
    assert "knows no argument 'aggregation_strategy'" in predicted(
        capsys, reads, "--file", tmp_path / "questions.jsonl", "--aggregation-strategy", "first"
    )
