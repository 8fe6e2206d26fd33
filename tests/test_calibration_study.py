"""The study of calibration on made-up text with a tiny model: benchmarks/calibration.py --study."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from study import catalogue, recipes, resampling, tasks, training  # noqa: E402
from study import main as command  # noqa: E402
from study.tables import interval  # noqa: E402

SIZES = tasks.Sizes(validation=20, test=20, ood=20, resampled=10, frozen_layers=1)


@pytest.fixture(scope="module")
def task(texts, tmp_path_factory):
    """60 training examples, and 20 of every other kind, of three classes; out-of-distribution text is marked as such."""
    pick, rows = random.Random(0), []
    for split, count in (("train", 60), ("validation", 20), ("test", 20)):
        rows += [{"split": split, "text": pick.choice(texts), "intent": "abc"[index % 3]} for index in range(count)]
    rows += [{"split": "test", "text": text[::-1], "intent": "oos"} for text in texts[:20]]
    file = tmp_path_factory.mktemp("text") / "made-up.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return tasks.StudyTask("made-up", str(file), 60, 20)


def run_study(task, base_folder, folder, *more):
    options = command.parser().parse_args([str(folder), "--seeds", "0", "1", "--results", str(folder / "results.json"), *more])
    command.study([task], options, base=base_folder, sizes=SIZES)
    return json.loads((folder / "results.json").read_text())["results"]["made-up"]


@pytest.mark.slow
def test_the_study_trains_predicts_and_compares_and_computes_nothing_twice(task, base_folder, tmp_path, capsys, monkeypatch):
    # Red for: a recipe left out, a seed left out, results that depend on when the study was interrupted, pieces computed again.
    found = run_study(task, base_folder, tmp_path)
    shown = capsys.readouterr().out
    assert list(found) == ["0", "1"]
    for name in catalogue.RECIPES:
        assert 0 < found["0"]["recipes"][name]["nll"] < 5
        assert f"| {name} |" in shown
    assert set(found["0"]["detection"]) >= {"entropy of MAP", "distance at the mean"}
    (tmp_path / "made-up" / "seed-1" / "metrics.json").unlink()
    (tmp_path / "made-up" / "seed-1" / "decay.safetensors").unlink()
    for file in (tmp_path / "made-up" / "seed-1" / "logits").glob("map*"):
        file.unlink()
    assert run_study(task, base_folder, tmp_path) == found

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(command, "read_data", refuse)
    assert run_study(task, base_folder, tmp_path) == found


@pytest.mark.slow
def test_parts_add_recipes_and_the_trainings_that_they_need(task, base_folder, tmp_path):
    # Red for: a schedule that is not trained, recipes of earlier calls that are lost, an adapter that is distilled and not used,
    # resampling that is left out because everything else is there.
    first = run_study(task, base_folder, tmp_path, "--seeds", "0")["0"]["recipes"]
    parts = [
        "variants",
        "rates",
        "smoothing",
        "distillation",
        "fits",
        "members",
        "seeds",
        "sgd",
        "sgd-rates",
        "blob",
        "ivon",
        "coefficients",
    ]
    found = run_study(task, base_folder, tmp_path, "--seeds", "0", "--parts", *parts)["0"]["recipes"]
    assert set(found) == {name for part in command.PARTS.values() for name in part}
    assert {name: found[name] for name in first} == first
    resampled = run_study(task, base_folder, tmp_path, "--seeds", "0", "--resamples", "2")["0"]["resampled"]
    assert set(resampled) == set(catalogue.RECIPES | catalogue.IDEAS) - {"old tune"}
    losses = [
        found[name]["nll"] for name in ("SWA, temperature", "SWA, rate halved, temperature", "SWAG, distilled, temperature")
    ]
    assert len(set(losses)) == 3
    assert found["MAP, label smoothing .1"]["nll"] != found["MAP"]["nll"]


def test_a_schedule_goes_the_same_way_wherever_it_branches_off(task, base_folder, tmp_path, monkeypatch):
    # Red for: another batch order, an optimizer or a random state that starts anew at the branching, a step kept twice or left out.
    data = tasks.read_data(task, base_folder, seed=0, sizes=SIZES)
    options = {
        "steps": 20,
        "seed": 0,
        "optimization": training.Optimization(),
        "frozen_layers": 1,
        "schedules": ["decay"],
    }
    whole = []
    for start in (0.3, 0.8):
        monkeypatch.setattr(training, "START", start)
        folder = tmp_path / str(start)
        training.train_run(base_folder, data, folder, **options)
        beginning, rest = (training.Trajectory.load(folder / f"{name}.safetensors") for name in ("beginning", "decay"))
        assert beginning.steps[-1] == start * 20
        whole.append(beginning.followed_by(rest))
    assert whole[0].steps == whole[1].steps == list(range(1, 21))
    assert whole[0].validation_nll == whole[1].validation_nll
    torch.testing.assert_close(whole[0].weights, whole[1].weights, rtol=0, atol=0)


def test_upper_layers_of_hidden_states_predict_what_the_whole_model_predicts(task, base_folder, texts):
    # Red for: hidden states of another layer, padding that is attended to, examples in another order.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    whole = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True).eval()
    torch.manual_seed(0)
    upper = tasks.upper_layers(base_folder, 3, frozen_layers=1).eval()
    examples = tasks.Examples(texts, None, base_folder, 1)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    with torch.no_grad():
        for chosen, batch in examples.batches(4):
            wanted = torch.cat([whole(**tokenizer(texts[index], return_tensors="pt")).logits for index in chosen])
            torch.testing.assert_close(upper(**batch).logits, wanted, rtol=1e-4, atol=1e-5)


def test_resampling_divides_the_test_examples_and_leaves_the_validation_examples_out():
    # Red for: examples that are chosen on and tested on, labels or logits of other examples.
    logits = np.arange(12.0).reshape(1, 6, 2)
    examples = tasks.Examples(list("abcdef"), np.arange(6) % 2, "", 0)
    run = SimpleNamespace(seed=0, logits=lambda *_: logits, data=tasks.TaskData(2, {"test": examples, "validation": examples}))
    divided = resampling.Resampled(run, np.array([4, 1]))
    assert divided.data.splits["validation"].texts == ["e", "b"] and divided.data.splits["test"].texts == list("acdf")
    assert divided.data.splits["validation"].labels.tolist() == [0, 1]
    assert divided.logits(catalogue.MAP, "validation")[0, :, 0].tolist() == [8, 2]
    assert divided.logits(catalogue.MAP, "test")[0, :, 0].tolist() == [0, 4, 6, 10]


def test_stacking_weights_are_a_stationary_point_of_the_penalised_likelihood():
    # Red for: weights that do not sum to 1, a penalty left out of the maximisation.
    likelihoods = np.random.default_rng(0).uniform(0.05, 1, (3, 40))
    weights = recipes.stacking_weights(likelihoods, 0.7)
    assert weights.sum() == pytest.approx(1)
    slope = (likelihoods / (weights @ likelihoods)).sum(1) + 0.7 / weights
    assert slope == pytest.approx(slope.mean(), rel=1e-6)  # the constraint's multiplier


def test_an_interval_of_paired_differences_is_student_s():
    # Red for: the normal quantile, the variance with the divisor n, counting ties or rises as lower.
    assert interval(np.array([-1.0, 0.0, 2.0])) == "+0.333 ± 3.795 (1/3)"
