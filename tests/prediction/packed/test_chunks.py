import logging

import pytest
import torch
from architectures import both, copy_of, ragged, tiny, wide_draws

from swag_trainer.prediction.packed import chunks
from swag_trainer.prediction.packed.chunks import Chunks
from swag_trainer.prediction.packed.sampler import PackedSampler


def sizes_of(plan, draws, **arguments):
    sizes = []

    def answer(part, first):
        sizes.append(len(part))
        return 2 * part

    assert torch.equal(plan.run(answer, draws, **arguments), 2 * draws)
    return sizes


@pytest.mark.parametrize(
    ("num_draws", "tokens", "sizes"),
    [(10, 25, [4, 3, 3]), (10, 10, [10]), (10, 11, [5, 5]), (7, 51, [1] * 7), (3, 5000, [1] * 3), (1, 1, [1])],
)
def test_a_forward_has_at_most_so_many_tokens_and_all_are_about_as_large(num_draws, tokens, sizes):
    # Red for: a last forward of one draw, no forward at all for a large batch, a chunk above the limit.
    assert sizes_of(Chunks(100), torch.randn(num_draws, 3), tokens=tokens) == sizes


def test_a_cpu_takes_1024_tokens():
    # Red for: 8,192 tokens in one forward, which is slower than none packed.
    assert sizes_of(Chunks(), torch.randn(64, 1), tokens=32) == [32, 32]
    assert sizes_of(Chunks(), torch.randn(30, 1), tokens=32, bytes_per_token=10**12) == [30]


def test_a_gpu_takes_what_half_of_its_free_memory_holds(monkeypatch):
    # Red for: all of the memory, the total for the free, a limit of the CPU's. No GPU is needed to see it.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * 2**30, 80 * 2**30))
    gpu = torch.device("cuda")
    assert chunks._tokens_that_fit(gpu, 2**20) == 20 * 2**10
    assert chunks._tokens_that_fit(gpu, 1) == 65_536
    assert chunks._tokens_that_fit(gpu, 2**34) == 1024
    assert chunks._tokens_that_fit(torch.device("cpu"), 1) == 1024


def test_draws_are_halved_when_memory_runs_out_and_stay_so(caplog):
    # Red for: a chunk lost or answered twice, a limit found anew for every batch, an endless loop at one draw.
    tried, plan, draws = [], Chunks(100), torch.randn(10, 3)

    def answer(part, first):
        tried.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("no room")
        return 2 * part

    with caplog.at_level(logging.INFO, logger="swag_trainer.prediction.packed.chunks"):
        assert torch.equal(plan.run(answer, draws, tokens=10), 2 * draws)
        assert tried == [10, 5, 2, 2, 2, 2, 2]
        assert "10 draws in one forward; going on with 5" in caplog.text
        tried.clear()
        assert torch.equal(plan.run(answer, draws, tokens=10), 2 * draws)
        assert tried == [2] * 5

    def never(part, first):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        plan.run(never, draws, tokens=10)


def test_a_packed_forward_that_does_not_fit_is_answered_in_smaller_ones():
    # Red for: a fallback to single draws, or an error, where three draws fit; what was kept of the prefix used up by the failure.
    model, batch = tiny("bert", layers_to_transform=[2]), ragged()
    _, _, expected = both(model, batch)
    weights = copy_of(model)
    packed, rows = PackedSampler(weights, wide_draws(weights)), []
    packed(batch)

    def full(module, arguments):
        rows.append(len(arguments[0]))
        if len(arguments[0]) > 15:
            raise torch.OutOfMemoryError("no room")

    weights.model.get_base_model().bert.encoder.layer[2].register_forward_pre_hook(full)
    torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)
    assert rows == [5, 35, 15, 10, 10] and packed.obstacle is None
