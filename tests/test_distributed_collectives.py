import pytest
import torch
from torchrun import torchrun

from swag_trainer import distributed as processes

DOCUMENT = [7, None, "ein Schlüssel", {"rate": 1e-5, "norms": [0.1, 0.30000000000000004]}, True, []]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two real processes received."""
    folder = tmp_path_factory.mktemp("processes")
    results = torchrun("collection/processes_worker.py", "everything", folder=folder, document=DOCUMENT, seconds=120)
    return [result["everything"] for result in results]


def test_both_processes_get_the_first_ones_tensor_bit_for_bit(two):
    # Red for: a tensor of the second process, a view sent with its holes, or a cast on the way.
    sent = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    for received in two:
        assert torch.equal(received["matrix"], sent)
        assert torch.equal(received["view"], sent[:, 1])
        assert received["no rows"].shape == (0, 5)
        assert torch.equal(received["halves"], sent.bfloat16().float())
        assert received["own"]


def test_both_processes_get_everybodys_number_in_the_same_order(two):
    # Red for: each process with its own number first, or numbers that lose bits on the way.
    assert [received["numbers"] for received in two] == [[-(2**62), -(2**62) + 1]] * 2


def test_both_processes_get_the_first_ones_document(two):
    # Red for: a document cut to the length of the other process's, or a float that comes back as another.
    assert [received["document"] for received in two] == [DOCUMENT] * 2
    assert [received["nothing"] for received in two] == [None, None]


def test_one_process_is_the_first_of_two(two):
    # Red for: statistics in no process, or in both.
    assert [received["is_first"] for received in two] == [True, False]
    assert [received["count"] for received in two] == [2, 2]


def test_in_a_run_of_one_process_nothing_needs_to_be_sent():
    # Red for: a process group asked for that nobody made.
    tensor = torch.randn(3)
    assert torch.equal(processes.broadcast_tensor(tensor, shape=(3,)), tensor)
    assert processes.broadcast_document(DOCUMENT) is DOCUMENT
    assert processes.gather_numbers(5) == [5]
    assert processes.is_first() and processes.count_processes() == 1
