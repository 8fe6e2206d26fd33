"""The paper's protocol in its small mode: a tiny random language model and 64 questions."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig

from swag_trainer import SwagError
from swag_trainer.tasks.questions import Question

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "paper"))
    import multiple_choice

    return multiple_choice


def changed_sets(read_sets):
    def read(options):
        train, sets = read_sets(options)
        return train, sets | {"test": sets["test"][1:]}

    return read


@pytest.mark.parametrize("scoring", [pytest.param("letters", marks=pytest.mark.slow), "answers"])
def test_the_small_mode_prints_the_tables_and_goes_on_where_it_was(paper, scoring, tmp_path, capsys, monkeypatch):
    # Red for: a method without its metrics, an ensemble that is not of all seeds, a second run that trains or predicts again, results that
    # tell where they were made.
    arguments = ["--small", "--scoring", scoring, "--output", str(tmp_path), "--num-samples", "3", "--learning-rate", "1e-2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 20 questions are few to tune on
        first = paper.main([*arguments, "--seeds", "0", "1"])
    tables = capsys.readouterr().out.split("\n\n")[-2:]
    rows = [[line.split(" | ")[0].removeprefix("| ") for line in each.splitlines() if line.startswith("|")] for each in tables]
    single, ensembles = ["MAP", "MC dropout", "SWA", "SWAG"], ["ensemble", "MultiSWA", "MultiSWAG"]
    scaled = [name for each in single for name in (each, f"{each}, T")]
    scaled += ["SWAG, tuned", *(name for each in ensembles for name in (each, f"{each}, T"))]
    assert [each[2:] for each in rows] == [scaled, scaled] and "nan" not in "".join(tables)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(first))
    assert str(tmp_path) not in (tmp_path / "results.json").read_text()
    draws = [np.load(tmp_path / f"seed-{seed}" / "SWAG.npz")["draws of test"] for seed in (0, 1)]
    answers = np.array(
        [json.loads(line)["answer"] for line in next(tmp_path.rglob(first["options"]["test"])).read_text().splitlines()]
    )
    hits = np.concatenate(draws).mean(axis=0).argmax(axis=1) == answers
    assert len(draws[0]) == 3 and first["results"]["MultiSWAG"][0]["test"]["accuracy"] == hits.mean()
    assert 0 <= first["results"]["MAP"][1]["shifted"]["AUROC"] <= 1 and len(first["results"]["MAP, T"]) == 2
    import methods
    import training

    monkeypatch.setattr(training.ChoiceTrainer, "train", lambda self: pytest.fail("trained again"))
    monkeypatch.setattr(methods.MonteCarloPredictor, "predict", lambda *_, **__: pytest.fail("predicted again"))
    again = paper.main([*arguments, "--seeds", "0", "1"])
    monkeypatch.setattr(paper, "read_sets", changed_sets(paper.read_sets))
    with pytest.raises(SwagError, match="questions"):  # the probabilities there are for others
        paper.main([*arguments, "--seeds", "0", "1"])
    monkeypatch.undo()
    kept = tmp_path / "seed-0" / "SWA.npz"
    kept.write_bytes(kept.read_bytes()[:-40])
    monkeypatch.syspath_prepend(str(EXAMPLES / "paper"))
    with pytest.raises(SwagError, match=r"SWA.npz' is damaged: delete it"):
        paper.main([*arguments, "--seeds", "0", "1"])
    assert again["results"] == first["results"]
    with pytest.raises(SwagError, match="learning_rate"):
        paper.main([*arguments, "--learning-rate", "2e-2", "--seeds", "0", "1"])


def test_question_sets_have_names_of_their_own(paper, tmp_path):
    # Red for: shifted questions that are measured as the test set, or temperatures fitted to them, since their file is called so.
    from question_sets import sources_by_name

    assert sources_by_name(["a/test.jsonl", "a/x.jsonl", "b/x.jsonl", "arc-e"]) == {
        "a/test": "a/test.jsonl",
        "x": "a/x.jsonl",
        "b/x": "b/x.jsonl",
        "arc-e": "arc-e",
    }
    with pytest.raises(SwagError, match="a name of its own"):
        sources_by_name(["a/x.jsonl", "a/x.jsonl", "a/x.jsonl"])
    file = tmp_path / "few.jsonl"
    file.write_text('{"question": "Which?", "choices": ["one", "two"], "answer": 0}\n' * 9)
    where = [argument for option in ("--train", "--test", "--shifted") for argument in (option, str(file))]
    for validation in ("8", "9"):
        with pytest.raises(SwagError, match="20 are needed there"):
            paper.main([*where, "--output", str(tmp_path / validation), "--validation", validation])
    assert not (tmp_path / "9").exists()  # where another --validation would be refused from then on


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "Which?", "choices": ["one", "two"]}', "line 2 of .* has no right choice"),
        ('{"question": "Which?", "choices": ["one", "two"], "answer": "B"}', "line 2 of .* the answer 'B'"),
        ('{"question": "Which?", "choices": ["1", "2", "3", "4", "5", "6"], "answer": 0}', "line 2 of .* 6 choices"),
        ('{"question": "\\ud83d", "choices": ["one", "two"], "answer": 0}', "line 2 of .* surrogate"),
        ('{"question": ', "line 2 of .* not valid JSON"),
        ("[1]", "line 2 of .* not a JSON object"),
        ("", "a file of questions"),
    ],
)
def test_a_question_that_cannot_be_used_is_named_before_anything_is_trained(paper, line, words, tmp_path):
    # Red for: a traceback of the Trainer's at the step that comes upon it, or one that names neither file nor line.
    file = tmp_path / ("odd.jsonl" if line else "no.jsonl")
    if line:
        file.write_text('\ufeff{"question": "Which?", "choices": ["one", "two"], "answer": 0}\n' + line)
    where = [argument for option in ("--train", "--test", "--shifted") for argument in (option, str(file))]
    with pytest.raises(SwagError, match=words):
        paper.main([*where, "--output", str(tmp_path / "out")])


def test_data_sets_of_the_hub_become_questions(paper):
    # Red for: the answer of WinoGrande counted from 1, labels of RTE in the order of the others.
    from question_sets import HUB_SETS

    examples = {
        "wg-s": {
            "sentence": "The cup did not fit into the box, as the _ was small.",
            "option1": "cup",
            "option2": "box",
            "answer": "2",
        },
        "boolq": {"passage": "Ice floats.", "question": "does ice float", "answer": True},
        "rte": {"sentence1": "A dog runs.", "sentence2": "An animal runs.", "label": 0},
        "mrpc": {"sentence1": "A dog runs.", "sentence2": "A dog is running.", "label": 1},
    }
    right = {}
    for name, example in examples.items():
        question = Question.from_row(HUB_SETS[name].question(example), max_choices=5)
        right[name] = question.choices[question.answer]
    assert right == {"wg-s": "box", "boolq": "yes", "rte": "yes", "mrpc": "yes"}
    key = {"question_stem": "Which?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"}
    assert Question.from_row(HUB_SETS["obqa"].question(key), max_choices=5).answer == 1


def test_files_are_needed_without_the_small_mode(paper, capsys):
    # Red for: a run that trains for an hour and then finds nothing to measure on.
    with pytest.raises(SystemExit):
        paper.main(["--train", "a.jsonl"])
    assert "--train, --test and --shifted are needed" in capsys.readouterr().err


def test_the_memory_of_a_step_and_of_predictions_is_calculated_from_the_config(monkeypatch, tmp_path, capsys):
    # Red for: activations that gradient checkpointing does not drop, a base that quantisation does not shrink, AdamW left out.
    monkeypatch.syspath_prepend(str(EXAMPLES / "paper"))
    import memory

    LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    ).save_pretrained(tmp_path)
    found = dict(memory.main(["--model", str(tmp_path), "--length", "16", "--batch-size", "4"]))
    assert "4,194,304" not in (shown := capsys.readouterr().out) and "8,192 weights in the adapter" in shown
    whole, quantised = ([size for name, size in found.items() if base in name] for base in ("bfloat16", "4 bits"))
    assert all(one > other > 0 for one, other in zip(whole, quantised, strict=True))
    kept = whole[0] - whole[1]
    inputs = 4 * 4 * 16 * 64 * 2 / memory.GIB  # of every layer, which is what checkpointing keeps
    assert kept > 3 * inputs
    assert whole[1] * memory.GIB > 4 * 4 * 8192
