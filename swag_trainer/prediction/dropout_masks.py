"""Counter-based dropout masks: which entries are kept follows from a key and the entry's indices alone.

A hash stands in for a random number generator. Its entries do not depend on how many others are computed, so the mask of a short text is
a corner of that of a long one, and its integer arithmetic gives the same bits on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN_RATIO = 0x9E3779B97F4A7C15 - 2**64  # constants of SplitMix64, as signed 64-bit numbers
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_BITS = 16  # an entry's share of a hash: rates are rounded to 2 ** -16
_PER_HASH = 64 // _BITS


def mask_key(seed: int, draw: int, name: str, call: int) -> int:
    """Return the key of the mask of one draw in one call of a module; it fits into int64.

    Args:
        seed: Of the masks.
        draw: The draw's number, from 0.
        name: Qualified name of the module.
        call: How many calls of the module the same forward has made before.
    """
    digest = hashlib.blake2b(f"{seed}/{draw}/{call}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def keep_masks(keys: Sequence[int], shape: Sequence[int], rate: float, device: torch.device) -> Tensor:
    """Return which entries are kept under each of S keys. Shape (S, *shape), bool.

    Args:
        keys: What `mask_key` returned.
        shape: Up to three dimensions below 2 ** 20, such as (heads, queries, keys) or (features,).
        rate: The probability of an entry to be dropped out.
        device: Where the masks shall lie.
    """
    *outer, width = shape
    index = torch.arange(-(-width // _PER_HASH), device=device)
    for place, size in enumerate(reversed(outer), start=1):
        index = index + (torch.arange(size, device=device) << 20 * place).view(size, *[1] * place)
    index *= _GOLDEN_RATIO
    # Signed 16-bit numbers from -2 ** 15 on: as many of them as the rate says are dropped out, the lowest ones.
    last_dropped = max(1, round(rate * 2**_BITS)) - 1 - 2 ** (_BITS - 1)
    return torch.stack([_mixed(index + key).view(torch.int16)[..., :width] > last_dropped for key in keys])


def _mixed(numbers: Tensor) -> Tensor:
    """Hash int64 numbers in place: the output function of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA)."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        numbers.bitwise_xor_(_shifted(numbers, shift)).mul_(factor)
    return numbers.bitwise_xor_(_shifted(numbers, 31))


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift to the right as if the numbers had no sign, which torch's own shift would fill in."""
    return (numbers >> bits).bitwise_and_((1 << (64 - bits)) - 1)
