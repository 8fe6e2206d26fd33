from types import SimpleNamespace

import torch
from torch import nn

from swag_trainer.prediction.packed.tracing import NO_TENSOR, trace_calls


class Traced(nn.Module):
    """One module of its own for each thing that is to be seen."""

    def __init__(self):
        super().__init__()
        names = ["rows", "sideways", "constant", "number", "object", "writes", "flat", "often", "both"]
        self.parts = nn.ModuleDict({name: Part() for name in names})

    def forward(self, x, mask=None):
        parts = self.parts
        parts["rows"](x, {"scale": 2.0, "mask": None})
        parts["sideways"](x.transpose(0, 1))
        parts["constant"](torch.ones(2, 3), x)
        parts["number"](x, len(x))
        parts["object"](x, result=SimpleNamespace(x=x))
        parts["writes"](x * 1, write=True)
        parts["flat"](x.flatten(0, 1))
        for _ in x:
            parts["often"](x)
        parts["both"](torch.einsum("ai,bi->ab", x[:, 0], x[:, 0]))
        return x


class Part(nn.Module):
    def forward(self, x, *others, result=None, write=False):
        if write:
            x += 1
        return x if result is None else result


def test_rows_are_where_the_size_follows_their_number():
    # Red for: the first dimension, or one as long as the batch, taken for the rows.
    model, batch = Traced(), {"x": torch.randn(2, 3, 4)}
    trace = trace_calls(model, batch)
    calls, output = trace.calls, trace.outputs
    seen = {name: calls[part] for name, part in model.parts.items() if part in calls}
    first = {name: (call.inputs, call.outputs) for name, (call, *_) in seen.items() if call.understood}
    no = NO_TENSOR
    assert first == {
        "rows": ((0, no, no, no), (0,)) if "rows" in first and len(first["rows"][0]) == 4 else ((0, no, no), (0,)),
        "sideways": ((1,), (1,)),
        "constant": ((None, 0), (None,)),
    }
    assert torch.equal(output, batch["x"][:1])


def test_what_is_not_understood_is_said_to_be():
    # Red for: a number of rows handed over as a number, an object with rows inside, tokens of all rows in one dimension, an input
    # that is written to, or rows against rows, believed to be what can be copied.
    model = Traced()
    calls = trace_calls(model, {"x": torch.randn(2, 3, 4)}).calls
    for name in ("number", "object", "writes", "flat", "both"):
        assert [call.understood for call in calls[model.parts[name]]] == [False], name
    assert model.parts["often"] not in calls


def test_tracing_leaves_no_hook_behind():
    # Red for: hooks that stay when the model raises.
    model = Traced()
    for batch in ({"x": torch.randn(2, 3, 4)}, {"x": torch.randn(2)}):
        try:
            trace_calls(model, batch)
        except IndexError:
            pass
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_size_is_that_of_the_largest_tensor_for_one_row():
    # Red for: elements for bytes, or both rows.
    model = Traced()
    calls = trace_calls(model, {"x": torch.randn(2, 3, 4, dtype=torch.float64)}).calls
    assert calls[model.parts["rows"]][0].size == 3 * 4 * 8
