"""Prediction of a data set by two real processes, against the predictions of one."""

import distributed_prediction_worker as worker
import pytest
import torch
from torchrun import two_processes

SCRIPT = "prediction/distributed_prediction_worker.py"


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
    return two_processes(SCRIPT, "together", folder=tmp_path_factory.mktemp("together"), seconds=240, **setup)


@pytest.fixture(scope="module")
def apart(setup, tmp_path_factory):
    """The same of processes that are not in step."""
    return two_processes(SCRIPT, "alone", "failing", folder=tmp_path_factory.mktemp("apart"), seconds=240, **setup)


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("count", [24, 3, 2, 1])
def test_two_processes_answer_bit_for_bit_what_one_does_and_in_its_order(setup, results, count):
    # Red for: rows in the order of their lengths or of the processes, other batches than those of one process, answers of this
    # process's batches alone, a process without a batch that waits or raises.
    expected = worker.answer(setup, count)
    assert len(expected["probabilities"]) == count
    assert count == 1 or expected["probabilities"].std(dim=0).max() > 1e-2
    for result in results:
        assert same(result["together"][str(count)], expected)


def test_masks_of_dropout_do_not_depend_on_the_process(setup, results):
    # Red for: masks that follow each other from batch to batch, of which each process has others.
    expected = worker.answer(setup, 24, dropout=True)
    assert not same(expected, worker.answer(setup, 24))
    for result in results:
        assert same(result["together"]["dropout"], expected)


def test_each_process_predicts_its_part_and_no_more(results):
    # Red for: every process answering everything, or one process everything.
    answered = [result["together"]["answered here"] for result in results]
    assert sum(map(sum, answered)) == 24 + 3 + 2 + 1
    assert all(sum(sizes) > 10 for sizes in answered)


def test_processes_that_are_connected_are_so_for_accelerate_too(results):
    # Red for: a PartialState that is not told of the CPU, which connects the processes and takes each for the only one: a Trainer
    # made afterwards would train in each of them by itself.
    assert [result["together"]["processes for accelerate"] for result in results] == [2, 2]


def test_values_are_gathered_in_the_order_of_the_processes(results):
    # Red for: the order in which they come, or this process's own one first.
    assert [result["together"]["gathered"] for result in results] == [[0, 1], [0, 1]]


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
    # Red for: parts of two different data sets put together as one; draws of two seeds in one table.
    for result in (result["failing"] for result in apart):
        assert (
            "the rows of process 1" in result["a part of the rows each"]
            and "across_processes=False" in result["a part of the rows each"]
        )
        assert "the settings of process 1" in result["a seed each"]
        assert "the settings of process 1" in result["a batch size each"]


@pytest.mark.slow
def test_after_failures_the_same_predictor_still_answers(setup, apart):
    # Red for: a process that is one collective ahead of the other one from then on.
    expected = worker.answer(setup, 24)
    for result in apart:
        assert same(result["failing"]["afterwards"], expected)
