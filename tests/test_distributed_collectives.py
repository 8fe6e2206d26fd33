"""Collectives of two real processes, and what one process needs none for."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torchrun import torchrun

from swag_trainer import SwagError, distributed
from swag_trainer.distributed import Processes, digest

DOCUMENT = [7, None, "ein Schlüssel", {"rate": 1e-5, "norms": [0.1, 0.30000000000000004]}, True, []]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two real processes received."""
    folder = tmp_path_factory.mktemp("processes")
    results = torchrun("distributed_collectives_worker.py", "everything", folder=folder, document=DOCUMENT, seconds=120)
    return [result["everything"] for result in results]


@pytest.mark.slow
def test_both_processes_get_the_first_ones_tensor_bit_for_bit(two):
    # Red for: a tensor of the second process, a view sent with its holes, or a cast on the way.
    sent = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    for received in two:
        assert torch.equal(received["matrix"], sent)
        assert torch.equal(received["view"], sent[:, 1])
        assert received["no rows"].shape == (0, 5)
        assert torch.equal(received["halves"], sent.bfloat16().float())
        assert received["own"]


@pytest.mark.slow
def test_both_processes_get_the_number_of_every_process_in_the_same_order(two):
    # Red for: each process with its own number first, or numbers that lose bits on the way.
    assert [received["numbers"] for received in two] == [[-(2**62), -(2**62) + 1]] * 2


@pytest.mark.slow
def test_both_processes_get_the_first_ones_document(two):
    # Red for: a document cut to the length of the other process's, or a float that comes back as another.
    assert [received["document"] for received in two] == [DOCUMENT] * 2
    assert [received["nothing"] for received in two] == [None, None]


@pytest.mark.slow
def test_both_processes_get_every_value_in_the_order_of_the_processes(two):
    # Red for: lists that accelerate's gather_object joins into one.
    assert [received["gathered"] for received in two] == [[[0, "text"], [1, "text"]]] * 2


@pytest.mark.slow
def test_one_process_is_the_first_of_two(two):
    # Red for: statistics in no process, or in both.
    assert [received["is_first"] for received in two] == [True, False]
    assert [received["count"] for received in two] == [2, 2]


def test_in_a_run_of_one_process_nothing_needs_to_be_sent():
    # Red for: a process group asked for that nobody made.
    tensor = torch.randn(3)
    assert torch.equal(distributed.broadcast_tensor(tensor, shape=(3,)), tensor)
    assert distributed.broadcast_document(DOCUMENT) is DOCUMENT
    assert distributed.gather_numbers(5) == [5]
    assert distributed.is_first() and distributed.count_processes() == 1


def test_partitions_cover_every_batch_once_and_differ_by_one_batch_at_most():
    # Red for: batches dealt out by number, which gives one process all long ones.
    costs = np.random.default_rng(0).integers(1, 100, size=40).tolist()
    parts = [Processes(index, 3).partition(costs) for index in range(3)]
    assert sorted(number for part in parts for number in part) == list(range(40))
    loads = [sum(costs[number] for number in part) for part in parts]
    assert max(loads) - min(loads) <= max(costs) / 4
    assert [Processes(index, 3).partition([5]) for index in range(3)] == [[0], [], []]
    assert sorted(Processes().partition([3, 9])) == [0, 1]


def test_a_process_without_a_launcher_settles_nothing_for_accelerate(monkeypatch):
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


def test_processes_that_accelerate_does_not_count_are_refused(monkeypatch):
    # Red for: accelerate's collectives where it takes each process for the only one: each would return its own value alone.
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {})
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"is_initialized": True, "get_rank": 0, "get_world_size": 2}.items():
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    for collective in (
        lambda: distributed.gather_numbers(1),
        lambda: distributed.broadcast_document({}),
        lambda: distributed.broadcast_tensor(torch.zeros(1), shape=(1,)),
        lambda: Processes(0, 2).all_gather(lambda: 1),
    ):
        with pytest.raises(SwagError, match=r"connects 2 processes, accelerate counts 1.*torchrun"):
            collective()
