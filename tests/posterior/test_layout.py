import pytest
import torch

from swag_trainer.posterior.layout import WeightLayout

WEIGHTS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([7.0, 8.0]), "c": torch.tensor(9.0)}


def test_flatten_puts_the_weights_in_the_order_of_their_keys():
    # Red for: the order of the mapping instead of sorted keys.
    flat = WeightLayout.of(WEIGHTS).flatten(WEIGHTS)
    assert flat.tolist() == [7, 8, 0, 1, 2, 3, 4, 5, 9]


def test_unflatten_undoes_flatten_for_stacks_of_vectors_too():
    # Red for: shapes attached to the wrong keys, or a batch axis that is lost.
    layout = WeightLayout.of(WEIGHTS)
    stack = torch.stack([layout.flatten(WEIGHTS), -layout.flatten(WEIGHTS)])
    pieces = layout.unflatten(stack)
    for key, weight in WEIGHTS.items():
        torch.testing.assert_close(pieces[key], torch.stack([weight, -weight]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_flatten_keeps_what_float32_can_hold_of_other_dtypes(dtype):
    # Red for: a vector in the dtype of the weights.
    weight = torch.tensor([0.1, -3.0], dtype=dtype)
    flat = WeightLayout.of({"a": weight}).flatten({"a": weight})
    assert flat.dtype == torch.float32
    assert torch.equal(flat, weight.float())


def test_difference_names_the_first_key_that_only_one_side_has():
    # Red for: a comparison of counts, or of keys in one direction only.
    one, two = WeightLayout.of(WEIGHTS), WeightLayout.of({key: WEIGHTS[key] for key in "ab"})
    assert "'c'" in one.difference(two, ours="The posterior", theirs="The adapter")
    assert "'c'" in two.difference(one, ours="The posterior", theirs="The adapter")


def test_difference_names_the_weight_whose_shape_differs():
    # Red for: a comparison of keys only.
    other = WeightLayout.of(WEIGHTS | {"b": torch.zeros(3, 2)})
    sentence = WeightLayout.of(WEIGHTS).difference(other, ours="The posterior", theirs="The adapter")
    assert "'b'" in sentence and "[2, 3]" in sentence and "[3, 2]" in sentence
    assert WeightLayout.of(WEIGHTS).difference(WeightLayout.of(WEIGHTS), ours="A", theirs="B") is None
