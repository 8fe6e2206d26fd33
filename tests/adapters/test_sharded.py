import pytest
import torch
from conftest import lora_model
from torch.nn import Parameter
from torchrun import as_text, two_processes

from swag_trainer import SwagError
from swag_trainer.adapters.sharded import DeepSpeedReader, DTensorReader, WholeReader, reader_for
from swag_trainer.adapters.weights import AdapterWeights


def equal(ones, others):
    return set(ones) == set(others) and all(torch.equal(ones[key], others[key]) for key in others)


def answer(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 11)[None]).logits


@pytest.fixture(scope="module")
def two(base_folder, tmp_path_factory):
    """What two real processes did with an adapter that fully_shard cut up between them."""
    folder = tmp_path_factory.mktemp("sharded")
    modes = ("dtensor", "halves", "version_1")
    return two_processes("adapters/sharded_worker.py", *modes, folder=folder, base=str(base_folder), seconds=150)


@pytest.fixture
def whole(base_folder):
    """The same adapter in one piece."""
    return AdapterWeights(lora_model(base_folder, r=3).eval())


def test_a_sharded_adapter_is_read_as_if_it_were_whole(two, whole):
    # Red for: the piece of one process taken for the weight, padding read along, or pieces put together in another order.
    read = {key: weight.clone() for key, weight in whole.read().items()}
    for results in (result["dtensor"] for result in two):
        assert results["reader"] == "DTensorReader"
        assert results["keys"] == list(whole.layout.keys)
        assert results["shapes"] == [list(shape) for shape in whole.layout.shapes]
        assert equal(results["read"], read)
    # Both processes hold a part, and 3 rows do not divide by 2.
    first, second = (result["dtensor"]["local shapes"] for result in two)
    cut = [(one[0], other[0], shape[0]) for one, other, shape in zip(first, second, whole.layout.shapes, strict=True)]
    assert all(0 < one < rows and one + other == rows for one, other, rows in cut)
    assert (2, 1, 3) in cut


def test_a_sharded_adapter_is_read_after_an_answer_without_a_backward(two, whole):
    # Red for: what FSDP2 leaves in the modules after an evaluation taken for another adapter, which was refused.
    for results in (result["dtensor"] for result in two):
        assert equal(results["read after an answer"], results["read"])
        assert equal(results["read after all"], results["read"])


def test_a_sharded_model_answers_with_what_was_written(two, whole):
    # Red for: weights written beside the ones that the next forward uses, there and back.
    read = {key: weight.clone() for key, weight in whole.read().items()}
    before = answer(whole.model)
    whole.write({key: weight + 0.1 for key, weight in read.items()})
    for results in (result["dtensor"] for result in two):
        # Not to the last bit: the gathered weights begin at other addresses, and matrix products depend on that.
        torch.testing.assert_close(results["before"], before, rtol=0, atol=1e-6)
        torch.testing.assert_close(results["replaced"], answer(whole.model), rtol=0, atol=1e-6)
        assert torch.equal(results["back"], results["before"])
        assert torch.equal(results["written"], results["replaced"])
        assert (results["written"] - results["before"]).abs().max() > 0.01


def test_a_sharded_adapter_is_saved_and_copied_as_if_it_were_whole(two, whole):
    # Red for: the adapter as it was before a write, or a file with the base, a piece, or another configuration in it.
    whole.write({key: weight + 0.1 for key, weight in whole.read().items()})
    row, saved = torch.empty(whole.layout.size), whole.saved()
    whole.copy_into(list(whole.layout.unflatten(row).values()))
    for results in (result["dtensor"] for result in two):
        assert torch.equal(results["row"], row)
        assert equal(results["saved"], saved.tensors)
        assert results["config"] == as_text(saved.config)


def test_a_sharded_adapter_is_never_predicted_with(two):
    # Red for: draws written into one process's pieces.
    assert all("cut up over processes" in result["dtensor"]["private copy"] for result in two)


def test_a_sharded_weight_keeps_its_own_precision(two):
    # Red for: a float32 file of a bfloat16 head, or LoRA matrices rounded with the head.
    for results in (result["halves"] for result in two):
        for key, weight in results["saved"].items():
            expected = torch.full_like(weight, 1 / 3, dtype=torch.bfloat16 if "classifier" in key else torch.float32)
            assert weight.dtype == expected.dtype and torch.equal(weight, expected)
            assert torch.equal(results["read"][key], expected)


def test_weights_that_fsdp_version_1_flattened_are_refused(two):
    # Red for: "freeze '_flat_param'", which is every weight of the model.
    for messages in (result["version_1"] for result in two):
        assert len(messages) == 2
        assert all("FSDP version 1" in message and '"version": 2' in message for message in messages)


def test_weights_that_are_nowhere_are_refused(base_folder):
    # Red for: a posterior of tensors without values.
    with pytest.raises(SwagError, match="meta device.*Load the model"):
        AdapterWeights(lora_model(base_folder).to("meta"))


def test_the_reader_follows_from_how_the_parameters_are_kept():
    # Red for: the 16-bit copies of a DeepSpeed engine read as if they were the weights.
    def parameter(**attributes):
        made = Parameter(torch.zeros(2))
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    model = torch.nn.Linear(2, 2)
    assert isinstance(reader_for([parameter(), parameter()], model), WholeReader)
    assert isinstance(reader_for([parameter(), parameter(ds_id=3)], model), DeepSpeedReader)
    # None in the processes that hold none of this parameter's masters.
    assert isinstance(reader_for([parameter(_hp_mapping=None)], model), DeepSpeedReader)


def test_whole_weights_are_read_without_a_copy_and_written_in_place():
    # Red for: a clone of every weight in every collection, or a parameter that the optimizer no longer holds.
    parameters = [Parameter(torch.zeros(2, 3)), Parameter(torch.zeros(4, dtype=torch.bfloat16))]
    reader = WholeReader()
    assert [reader.shape(parameter) for parameter in parameters] == [(2, 3), (4,)]
    places = [parameter.data_ptr() for parameter in parameters]
    assert [weight.data_ptr() for weight in reader.read(parameters)] == places
    reader.write(parameters, [torch.full((2, 3), 1 / 3), torch.full((4,), 1 / 3)])
    assert [parameter.data_ptr() for parameter in parameters] == places
    assert torch.equal(parameters[0], torch.full((2, 3), 1 / 3))
    assert torch.equal(parameters[1], torch.full((4,), 1 / 3, dtype=torch.bfloat16))
    assert [weight.dtype for weight in reader.stored(parameters)] == [torch.float32, torch.bfloat16]


def test_parameters_that_are_not_cut_up_pass_a_dtensor_reader_unchanged():
    # Red for: a small head that stayed whole, beside matrices that are DTensors, refused or gathered twice.
    parameters, reader = [Parameter(torch.arange(3.0))], DTensorReader(torch.nn.Linear(2, 2))
    assert torch.equal(reader.read(parameters)[0], torch.arange(3.0))
    reader.write(parameters, [torch.ones(3)])
    assert torch.equal(parameters[0], torch.ones(3))
