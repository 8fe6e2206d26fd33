"""Each private name of a dependency that the packed forward uses is still there, and means what it did."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

from swag_trainer.prediction.packed.accelerate_internals import is_offloaded
from swag_trainer.prediction.packed.torch_internals import (
    flatten,
    has_linear_pointwise,
    hooks_of,
    leaves_of,
    linear_pointwise,
    map_tensors,
    parameters_of,
    replaced_forward,
    restore_forward,
    unflatten,
    version_of,
)


def test_nested_values_are_taken_apart_and_put_together():
    # Red for: torch.utils._pytree gone, or another order of the leaves.
    value = {"a": (torch.ones(2), None), "b": [3]}
    leaves, structure = flatten(value)
    assert leaves[1:] == [None, 3] and leaves_of(value)[1:] == [None, 3]
    assert unflatten(leaves, structure)["a"][0] is value["a"][0]
    assert map_tensors(lambda tensor: tensor + 1, value)["a"][0].tolist() == [2, 2]


def test_a_write_to_a_tensor_shows_in_its_version():
    # Red for: Tensor._version gone, or not counting.
    tensor = torch.ones(2)
    before = version_of(tensor)
    tensor.add_(1)
    assert version_of(tensor) > before


def test_a_forward_in_a_module_of_its_own_is_seen_used_and_taken_out():
    # Red for: nn.Module that keeps instance attributes elsewhere, or calls the forward of its class.
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    assert replaced_forward(layer) is None
    layer.forward = lambda x: x
    assert layer(x) is x
    replaced = replaced_forward(layer)
    restore_forward(layer, None)
    assert replaced_forward(layer) is None and layer(x) is not x
    restore_forward(layer, replaced)
    assert layer(x) is x


def test_hooks_of_both_kinds_and_parameters_are_found():
    # Red for: _forward_hooks, _forward_pre_hooks or _parameters renamed.
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(after := lambda *_: None)
    layer.register_forward_pre_hook(before := lambda *_: None)
    assert hooks_of(layer) == [before, after]
    assert parameters_of(layer)["weight"] is layer.weight
    parameters_of(layer)["weight"] = other = nn.Parameter(torch.zeros(2, 2))
    assert layer.weight is other


def test_the_product_of_onednn_is_that_of_a_linear_layer():
    # Red for: torch.ops.mkldnn._linear_pointwise gone, or with other arguments.
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    assert has_linear_pointwise()
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    torch.testing.assert_close(linear_pointwise(x, layer.weight, layer.bias), layer(x))


def test_an_offloaded_module_of_accelerate_is_seen():
    # Red for: _hf_hook or its attribute `offload` renamed.
    layer, near = nn.Linear(2, 2), nn.Linear(2, 2)
    weights = {name: value.detach().clone() for name, value in layer.named_parameters()}
    add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu", offload=True, weights_map=weights))
    add_hook_to_module(near, AlignDevicesHook(execution_device="cpu"))
    assert is_offloaded(layer) and not is_offloaded(near) and not is_offloaded(nn.Linear(2, 2))
