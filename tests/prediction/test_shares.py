"""A data set answered by two real processes, against the answers of one."""

from fractions import Fraction

import numpy as np
import pytest
import shares_worker as worker
import torch
from torchrun import torchrun

from swag_trainer.prediction.shares import Processes, digest

SCRIPT = "prediction/shares_worker.py"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that `torchrun` starts: float32 sums of two threads end in other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def setup(base_folder, texts, tmp_path_factory):
    return worker.setup_in(tmp_path_factory.mktemp("posterior"), base_folder, texts)


@pytest.fixture(scope="module")
def results(setup, tmp_path_factory):
    """What each of the two processes returned in each mode."""
    return torchrun(SCRIPT, "together", folder=tmp_path_factory.mktemp("together"), seconds=240, **setup)


@pytest.fixture(scope="module")
def apart(setup, tmp_path_factory):
    """The same of processes that are not in step."""
    return torchrun(SCRIPT, "alone", "failing", folder=tmp_path_factory.mktemp("apart"), seconds=240, **setup)


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("count", [24, 3, 2, 1])
def test_two_processes_answer_bit_for_bit_what_one_does_and_in_its_order(setup, results, count):
    # Red for: rows in the order of their lengths or of the processes, other batches than those of one process, answers of this
    # process's share alone, a process without a share that waits or raises.
    expected = worker.answer(setup, count)
    assert len(expected["probabilities"]) == count
    assert count == 1 or expected["probabilities"].std(dim=0).max() > 1e-2
    for result in results:
        assert same(result["together"][str(count)], expected)


def test_each_process_answers_its_share_and_no_more(results):
    # Red for: every process answering everything, or one process everything.
    answered = [result["together"]["answered here"] for result in results]
    assert sum(map(sum, answered)) == 24 + 3 + 2 + 1
    assert all(sum(sizes) > 10 for sizes in answered)


def test_processes_that_are_connected_are_so_for_accelerate_too(results):
    # Red for: a PartialState that is not told of the CPU, which connects the processes and takes each for the only one: a Trainer
    # made afterwards would train in each of them by itself.
    assert [result["together"]["processes for accelerate"] for result in results] == [2, 2]


def test_values_are_exchanged_in_the_order_of_the_processes(results):
    # Red for: the order in which they come, or this process's own one first.
    assert [result["together"]["exchanged"] for result in results] == [[0, 1], [0, 1]]


def test_draws_and_rows_with_numbers_of_their_own_come_back_in_order(setup, results):
    # Red for: draws put together along the rows' axis; blocks that depend on which rows a process has seen.
    predictor = worker.a_predictor(setup)
    draws = torch.from_numpy(predictor.predict(setup["rows"][:5], return_draws=True).draw_probabilities)
    exact = worker.answer(setup, 24, max_error=0.02, num_blocks=4)
    assert len(exact["num_draws"].unique()) > 1
    for result in results:
        assert torch.equal(result["together"]["draws"], draws)
        assert same(result["together"]["until exact"], exact)


@pytest.mark.slow
def test_one_process_alone_answers_a_batch_or_what_it_was_told_to(setup, apart):
    # Red for: a collective for a batch, or in spite of across_processes=False: process 1 would wait for ever.
    assert apart[0]["alone"] == {}
    assert same(apart[1]["alone"]["told so"], worker.answer(setup, 3))
    assert same(apart[1]["alone"]["batch"], worker.answer(setup, 1))


@pytest.mark.slow
def test_a_failure_in_one_process_is_raised_in_all(apart):
    # Red for: a process that leaves while the others wait for it, while reading or while answering.
    first, second = (result["failing"] for result in apart)
    assert second["reading"] == "OSError: the disk of process 1"
    assert first["reading"].startswith("SwagError: Process 1 of 2 failed") and "the disk of process 1" in first["reading"]
    assert second["answering"].startswith("IndexError")
    assert first["answering"].startswith("SwagError: Process 1 of 2 failed") and "IndexError" in first["answering"]
    for result in (first, second):
        assert "without rows" in result["no rows"]


@pytest.mark.slow
def test_processes_with_other_rows_or_settings_are_told_so(apart):
    # Red for: shares of two different data sets put together as one; draws of two seeds in one table.
    for result in (result["failing"] for result in apart):
        assert "the rows of process 1" in result["a share each"] and "across_processes=False" in result["a share each"]
        assert "the settings of process 1" in result["a seed each"]
        assert "the settings of process 1" in result["a batch size each"]


@pytest.mark.slow
def test_after_failures_the_same_predictor_still_answers(setup, apart):
    # Red for: a process that is one collective ahead of the other one from then on.
    expected = worker.answer(setup, 24)
    for result in apart:
        assert same(result["failing"]["afterwards"], expected)


def test_shares_cover_every_batch_once_and_differ_by_one_batch_at_most():
    # Red for: batches dealt out by number, which gives one process all long ones.
    costs = np.random.default_rng(0).integers(1, 100, size=40).tolist()
    shares = [Processes(index, 3).share(costs) for index in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(40))
    loads = [sum(costs[number] for number in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs) / 4
    assert [Processes(index, 3).share([5]) for index in range(3)] == [[0], [], []]
    assert sorted(Processes().share([3, 9])) == [0, 1]


def test_a_process_that_nobody_launched_settles_nothing_for_accelerate(setup, monkeypatch):
    # Red for: PartialState() in any process, after which TrainingArguments(use_cpu=True) comes too late.
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {})
    assert Processes.of_this_run() == Processes(0, 1)
    assert PartialState._shared_state == {}


def test_only_processes_that_were_launched_together_are_connected_and_only_once(monkeypatch):
    # Red for: a cluster's WORLD_SIZE or a launch of one process taken for company; a connection of the user's own that is made anew.
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {})
    alone = ({"WORLD_SIZE": "2"}, {"LOCAL_RANK": "0"}, {"LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    for environment in alone:
        with monkeypatch.context() as patch:
            for name in ("LOCAL_RANK", "WORLD_SIZE"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            assert Processes.of_this_run() == Processes(0, 1)
            assert PartialState._shared_state == {}, environment
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, answer in {"is_initialized": True, "get_rank": 1, "get_world_size": 2}.items():
        monkeypatch.setattr(f"torch.distributed.{name}", lambda answer=answer: answer)
    assert Processes.of_this_run() == Processes(1, 2)
    assert PartialState._shared_state == {}


def test_equal_rows_have_equal_digests_however_they_are_kept():
    # Red for: rows told apart by their container, or not told apart by values, names and places.
    row = {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}
    tensors = {name: torch.tensor(values) for name, values in row.items()}
    assert digest([row]) == digest([tensors]) == digest([{name: np.array(values) for name, values in reversed(row.items())}])
    others = [[row, row], [{**row, "input_ids": [1, 3, 2]}], [{**row, "input_ids": [1, 2]}], [{"input_ids": [1, 2, 3]}], []]
    assert len({digest(rows) for rows in ([row], *others)}) == 6


def test_other_names_nestings_and_kinds_have_other_digests():
    # Red for: names, lengths of lists or shapes left out, so that parts that change places look alike; yes and 1 told apart; texts
    # and whatever else is no number not looked at.
    assert digest({"input_ids": [1, 2]}) != digest({"token_type_ids": [1, 2]})
    assert digest([["a"], "b"]) != digest([["a", "b"]])
    assert digest([1, 2], [3]) != digest([1], [2, 3]) != digest([[1], [2, 3]])
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2))
    assert digest([True, False]) == digest([1, 0]) == digest([1.0, 0.0]) == digest(torch.tensor([True, False]))
    assert digest([1, [2, 3]]) != digest([1, [3, 2]])
    assert digest(Fraction(1, 3)) == digest(Fraction(1, 3)) != digest(Fraction(2, 3))  # two objects of one value
    assert digest("good") != digest("bad") != digest(None) != digest(object)
    assert digest(torch.ones(2, requires_grad=True)) == digest([1, 1])
