import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from headless import headless_base

from swag_trainer import Predictive

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def active_learning(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import active_learning

    # What it silences would stay silent for the tests after this one.
    monkeypatch.setattr(active_learning, "quiet_libraries", lambda: None)
    return active_learning


class Draws:
    """Answers with draws that are given."""

    def __init__(self, logits):
        self.logits = torch.tensor(logits)

    def predict(self, pool):
        return Predictive.from_logits(self.logits, "softmax")


def test_each_strategy_picks_the_rows_it_is_named_after(active_learning):
    # Red for: entropy where mutual information is asked for, or the surest rows in place of the least sure ones.
    agreed_unclear, disagreed, clear = [0.0, 0.0], [4.0, 0.0], [9.0, 0.0]
    # Three rows, two draws. The draws disagree on the second row; its averaged entropy is just below that of the first.
    predictor = Draws([[agreed_unclear, disagreed, clear], [agreed_unclear, [0.0, 3.0], clear]])
    assert active_learning.chosen("entropy", predictor, [0, 1, 2], 1).tolist() == [0]
    assert active_learning.chosen("mutual information", predictor, [0, 1, 2], 1).tolist() == [1]
    assert active_learning.chosen("random", predictor, [0, 1, 2], 2).tolist() == [0, 1]


def test_the_verdict_is_of_the_seed_by_seed_difference_and_knows_when_it_is_chance(active_learning):
    # Red for: an NLL whose sign is not turned round, an interval of the wrong width, a win claimed for noise.
    def curves(*pairs):
        return [
            {"random": [{"NLL": random, "accuracy": 0.5}], "entropy": [{"NLL": ours, "accuracy": 0.5}]}
            for random, ours in pairs
        ]

    won = active_learning.compared_with_random(curves((1.0, 0.80), (1.1, 0.91), (0.9, 0.69)), "entropy", "NLL")
    # Differences 0.20, 0.19, 0.21: mean 0.2, standard error 0.01 / sqrt(3), and 4.303 of those to either side.
    assert "3 of 3 seeds, by +0.200 on average, 95 % interval [+0.175, +0.225]: it wins." in won
    assert "it loses" in active_learning.compared_with_random(curves((1.0, 1.2), (1.0, 1.21), (1.0, 1.19)), "entropy", "NLL")
    unclear = active_learning.compared_with_random(curves((1.0, 0.8), (1.0, 1.1), (1.0, 0.95)), "entropy", "NLL")
    assert "2 of 3 seeds" in unclear and "not told from chance" in unclear
    assert "one seed says nothing" in active_learning.compared_with_random(curves((1.0, 0.8)), "entropy", "NLL")


def test_the_example_follows_every_strategy_from_the_same_start(active_learning, base_folder, tmp_path, monkeypatch, capsys):
    # Red for: strategies that begin with other rows, a round that labels more or fewer rows than another strategy's.
    base = headless_base(base_folder, tmp_path / "base")
    options = f"--model {base} --target-modules query value --steps 10 --first-rows 20 --rows-per-round 10 --rounds 1 --pool 40"
    options += " --test-rows 30 --seeds 2 --num-samples 4"
    monkeypatch.setattr(sys, "argv", ["active_learning.py", *options.split()])
    monkeypatch.setenv("COLUMNS", "200")
    seen = []
    real = active_learning.one_seed
    monkeypatch.setattr(active_learning, "one_seed", lambda *arguments: seen.append(real(*arguments)) or seen[-1])
    active_learning.main()
    said = " ".join(capsys.readouterr().out.split())
    for curves in seen:
        assert len({tuple(curve[0].values()) for curve in curves.values()}) == 1
        assert [len(curve) for curve in curves.values()] == [2, 2, 2]
    mean = np.mean([curves["entropy"][1]["NLL"] for curves in seen])
    assert f"{mean:.3f} ± " in said
    assert said.count("with 30 rows") == 6
    assert "mutual information, NLL: better than random choice for" in said


def test_the_first_rows_are_balanced_over_the_classes(active_learning):
    # Red for: rows taken as they come, or the same rows for every seed.
    targets = np.array([0] * 50 + [1] * 10 + [2] * 10)
    task = active_learning.TextTask("t", ["a", "b", "c"], {"train": [""] * 70}, {"train": targets}, [])
    first = active_learning.first_rows(task, 9, seed=0)
    assert np.bincount(targets[first]).tolist() == [3, 3, 3] and len(set(first.tolist())) == 9
    assert set(first.tolist()) != set(active_learning.first_rows(task, 9, seed=1).tolist())
