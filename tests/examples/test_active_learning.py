import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
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
    """A predictor with given draws."""

    def __init__(self, logits):
        self.logits = torch.tensor(logits)

    def predict(self, pool):
        return Predictive.from_logits(self.logits, "softmax")


def test_each_strategy_picks_the_rows_it_is_named_after(active_learning):
    # Red for: entropy where mutual information is asked for, or the surest rows in place of the least sure ones.
    agreed_unclear, disagreed, clear = [0.0, 0.0], [4.0, 0.0], [9.0, 0.0]
    # Three rows, two draws. The draws disagree on the second row; its averaged entropy is just below that of the first.
    predictor = Draws([[agreed_unclear, disagreed, clear], [agreed_unclear, [0.0, 3.0], clear]])
    generator = np.random.default_rng(0)
    assert active_learning.chosen("entropy", predictor, [0, 1, 2], 1, generator).tolist() == [0]
    assert active_learning.chosen("mutual information", predictor, [0, 1, 2], 1, generator).tolist() == [1]
    assert active_learning.chosen("random", predictor, [0, 1, 2], 2, generator).tolist() == [0, 1]


def test_rows_are_drawn_as_often_as_their_share_of_the_mutual_information(active_learning):
    # Red for: the highest rows whatever the luck, a draw by anything but the mutual information, one row drawn twice.
    predictor = Draws([[[3.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [0.0, 1.0], [1.0, 0.0]]])
    share = predictor.predict(None).mutual_information
    generator = np.random.default_rng(0)
    drawn = [active_learning.chosen("drawn by mutual information", predictor, [0, 1, 2], 2, generator) for _ in range(4000)]
    first = np.bincount([picked[0] for picked in drawn], minlength=3) / 4000
    np.testing.assert_allclose(first, share / share.sum(), atol=0.02)
    assert all(len(set(picked.tolist())) == 2 for picked in drawn)


def test_the_verdict_is_of_the_seed_by_seed_difference_and_knows_when_it_is_chance(active_learning):
    # Red for: an NLL whose sign is not turned round, an interval of the wrong width, a win claimed for noise.
    def curves(*pairs):
        return [
            {"random": [{"NLL": random, "accuracy": 0.5}], "entropy": [{"NLL": ours, "accuracy": 0.5}]}
            for random, ours in pairs
        ]

    won = active_learning.compared_with_random(curves((1.0, 0.80), (1.1, 0.91), (0.9, 0.69)), "entropy", "NLL")
    # Differences 0.20, 0.19, 0.21: mean 0.2, standard error 0.01 / sqrt(3), and 4.303 of those to either side.
    assert "3 of 3 seeds, by +0.200 on average, 95 % interval [+0.175, +0.225]: better." in won
    assert "worse" in active_learning.compared_with_random(curves((1.0, 1.2), (1.0, 1.21), (1.0, 1.19)), "entropy", "NLL")
    unclear = active_learning.compared_with_random(curves((1.0, 0.8), (1.0, 1.1), (1.0, 0.95)), "entropy", "NLL")
    assert "2 of 3 seeds" in unclear and "not significant" in unclear
    assert "one seed shows nothing" in active_learning.compared_with_random(curves((1.0, 0.8)), "entropy", "NLL")


@pytest.mark.slow
def test_the_example_follows_every_strategy_from_the_same_start(active_learning, base_folder, tmp_path, monkeypatch, capsys):
    # Red for: strategies that begin with other rows, a round that labels more or fewer rows than another strategy's, or rows that have
    # a label already; other pools for another strategy; a model that is not trained again.
    base = headless_base(base_folder, tmp_path / "base")
    options = f"--model {base} --target-modules query value --steps 10 --first-rows 20 --rows-per-round 10 --rounds 1 --pool 60"
    options += " --test-rows 30 --seeds 2 --num-samples 4"
    monkeypatch.setattr(sys, "argv", ["active_learning.py", *options.split()])
    monkeypatch.setattr(active_learning.console, "width", 200)  # it read the terminal's when it was made
    seen = []
    real = active_learning.one_seed
    monkeypatch.setattr(active_learning, "one_seed", lambda *arguments: seen.append(real(*arguments)) or seen[-1])
    pools, trained = [], []
    choose, train, tokenise = active_learning.chosen, active_learning.train, active_learning.tokenised

    def numbered(*arguments):
        rows = tokenise(*arguments)
        return rows.add_column("number", list(range(len(rows))))

    def chosen(strategy, predictor, pool, count, generator):
        pools.append(pool["number"][:])
        return choose(strategy, predictor, pool, count, generator)

    def trained_on(task, rows, *arguments, **named):
        trained.append(rows["number"][:])
        return train(task, rows, *arguments, **named)

    monkeypatch.setattr(active_learning, "tokenised", numbered)
    monkeypatch.setattr(active_learning, "chosen", chosen)
    monkeypatch.setattr(active_learning, "train", trained_on)
    level = logging.getLogger("swag_trainer").level
    active_learning.main()
    assert logging.getLogger("swag_trainer").level == level  # a notebook's other cells still warn
    shown = " ".join(capsys.readouterr().out.split())
    for curves in seen:
        assert len({tuple(curve[0].values()) for curve in curves.values()}) == 1
        assert [len(curve) for curve in curves.values()] == [2, 2, 2, 2]
        assert all(curve[0] != curve[1] for curve in curves.values())
    assert [len(rows) for rows in trained] == [20, 30, 30, 30, 30] * 2
    assert all(rows[:20] == trained[5 * seed] for seed in range(2) for rows in trained[5 * seed : 5 * seed + 5])
    assert [len(pool) for pool in pools] == [60] * 8
    for seed in range(2):
        assert all(pool == pools[4 * seed] for pool in pools[4 * seed : 4 * seed + 4])
        assert not set(pools[4 * seed]) & set(trained[5 * seed])
    assert pools[0] != pools[4]
    mean = np.mean([curves["entropy"][1]["NLL"] for curves in seen])
    assert f"{mean:.3f} ± " in shown
    assert shown.count("with 30 examples") == 8
    assert "mutual information, NLL: better than random choice for" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shown"), [(["mixture", "--members", "2"], "MultiSWAG, 4"), (["laplace-head"], "Laplace (head), 3")]
)
def test_the_posterior_that_was_asked_for_predicts(active_learning, base_folder, tmp_path, monkeypatch, options, shown):
    # Red for: an option without effect, members of one seed, another number of draws for each member.
    base = headless_base(base_folder, tmp_path / "base")
    common = ["--model", str(base), "--target-modules", "query", "--steps", "10", "--num-samples", "3"]
    monkeypatch.setattr(sys, "argv", ["active_learning.py", *common, "--posterior", *options])
    arguments = active_learning.parse_arguments()
    task = active_learning.read_task(arguments.dataset)
    tokenizer = active_learning.AutoTokenizer.from_pretrained(base)
    rows = active_learning.tokenised(task.texts["train"][:30], tokenizer, task.targets["train"][:30])
    seeds, train = [], active_learning.train
    monkeypatch.setattr(active_learning, "train", lambda *given, **named: seeds.append(given[5]) or train(*given, **named))
    predictor = active_learning.fitted(task, rows, tokenizer, arguments, 7)
    assert shown in repr(predictor) and len(set(seeds)) == len(seeds) == (2 if "mixture" in options else 1)
    assert (predictor.predict(rows).mutual_information > 0).any()


def test_the_first_rows_are_balanced_over_the_classes(active_learning):
    # Red for: rows taken as they come, or the same rows for every seed.
    targets = np.array([0] * 50 + [1] * 10 + [2] * 10)
    task = active_learning.TextTask("t", ["a", "b", "c"], {"train": [""] * 70}, {"train": targets}, [])
    first = active_learning.first_rows(task, 9, seed=0)
    assert np.bincount(targets[first]).tolist() == [3, 3, 3] and len(set(first.tolist())) == 9
    assert set(first.tolist()) != set(active_learning.first_rows(task, 9, seed=1).tolist())


def test_the_table_has_means_and_deviations_over_the_seeds_below_the_numbers_of_rows(active_learning):
    # Red for: a deviation divided by the number of seeds, metrics exchanged, numbers of examples that were not labelled.
    def curves(*accuracies):
        return {name: [{"accuracy": each, "NLL": 2 * each} for each in accuracies] for name in active_learning.STRATEGIES}

    task = active_learning.TextTask("support", [], {}, {}, [])
    arguments = SimpleNamespace(first_rows=30, rows_per_round=20, rounds=1)
    table = active_learning.as_table(task, [curves(0.25, 0.5), curves(0.75, 0.5)], arguments)
    assert [column.header for column in table.columns] == ["chosen by", "metric", "30 examples", "50 examples"]
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    # The deviation of 0.25 and 0.75 with one row taken off is 0.5 / sqrt(2).
    assert cells[0] == ("random", "accuracy", "0.500 ± 0.354", "0.500 ± 0.000")
    assert cells[1] == ("random", "NLL", "1.000 ± 0.707", "1.000 ± 0.000")
    assert [row[0] for row in cells[::2]] == list(active_learning.STRATEGIES)


def test_figures_are_those_of_the_rows_own_labels(active_learning):
    # Red for: labels of other rows, a metric of the training examples.
    predictor = Draws([[[2.0, 0.0]] * 8 + [[0.0, 2.0]] * 8])
    found = active_learning.metrics(predictor, Dataset.from_dict({"labels": [0] * 8 + [1] * 7 + [0]}))
    sure = 1 / (1 + np.exp(-2.0))
    assert found == {"accuracy": 15 / 16, "NLL": pytest.approx(-(15 * np.log(sure) + np.log(1 - sure)) / 16)}
