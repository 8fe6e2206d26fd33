"""Counter-based masks, against SplitMix64 in Python's own integers."""

import itertools

import pytest
import torch

from swag_trainer.prediction.dropout_masks import keep_masks, mask_key

CPU = torch.device("cpu")


def is_kept(key, place, rate):
    """One entry by the book: the 16 bits of its own from one output of SplitMix64."""
    head, query, position = place
    number = (((head << 40) + (query << 20) + position // 4) * 0x9E3779B97F4A7C15 + key) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ number >> shift) * factor % 2**64
    number ^= number >> 31
    bits = number >> 16 * (position % 4) & 0xFFFF
    signed = bits - 2**16 if bits >= 2**15 else bits
    return signed >= round(rate * 2**16) - 2**15


@pytest.mark.parametrize("key", [0, 1, -1, mask_key(3, 1, "bert.pooler", 0)])
def test_entries_are_those_of_splitmix64(key):
    # Red for: a shift that fills in the sign, a factor of another hash, indices of two dimensions that meet.
    shape = (3, 5, 7)
    found = keep_masks([key], shape, 0.3, CPU)[0]
    for place in itertools.product(*map(range, shape)):
        assert bool(found[place]) == is_kept(key, place, 0.3), place


def test_the_mask_of_a_short_text_is_a_corner_of_a_long_ones():
    # Red for: indices that count on with the width, a generator that is read row by row.
    keys = [5, -7]
    for small, large in (((2, 9, 6), (2, 64, 64)), ((5,), (384,))):
        corner = tuple(slice(0, size) for size in small)
        assert torch.equal(keep_masks(keys, small, 0.2, CPU), keep_masks(keys, large, 0.2, CPU)[(slice(None), *corner)])


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_as_many_are_dropped_as_the_rate_says_and_independently(rate):
    # Red for: another rate, masks of two keys, heads, queries or neighbours that resemble each other.
    keep = keep_masks([mask_key(0, draw, "layer", 0) for draw in range(4)], (4, 128, 128), rate, CPU).double()
    total, sd = keep.numel(), (rate * (1 - rate)) ** 0.5
    assert abs(float(keep.mean()) - (1 - rate)) < 4 * sd / total**0.5 + 2**-16
    centred = (keep - (1 - rate)) / sd
    others = [centred.roll(1, dims=dim) for dim in range(4)] + [centred.roll(4, dims=3), centred.mT]
    for other in others:  # of standard normal size when independent; the diagonal is its own transpose
        assert abs(float((centred * other).sum()) / total**0.5) < 4 + (0 if other is not others[-1] else 128**0.5)


def test_everything_or_nothing_can_be_dropped():
    # Red for: a threshold that wraps around in 16 bits.
    assert not keep_masks([1], (4096,), 1.0, CPU).any()
    assert keep_masks([1], (4096,), 1e-9, CPU).float().mean() > 0.99


def test_a_key_is_that_of_one_seed_draw_module_and_call():
    # Red for: one of the four left out, or two that run together ("1" and "12", "11" and "2").
    wanted = [(0, 1, "a", 2), (1, 1, "a", 2), (0, 2, "a", 2), (0, 1, "b", 2), (0, 1, "a", 1), (0, 11, "a", 2), (0, 1, "a", 12)]
    keys = [mask_key(*parts) for parts in wanted]
    assert len(set(keys)) == len(keys) and all(-(2**63) <= key < 2**63 for key in keys)
    assert mask_key(*wanted[0]) == keys[0]
