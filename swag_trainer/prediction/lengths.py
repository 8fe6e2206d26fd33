"""Lengths of inputs: which texts were truncated, and batches of rows of one length.

Rows of one length share a batch: padding would cost every draw what it costs one plain prediction, and change its sums a little.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def count_truncated(encoding: Any) -> int:
    """Return how many of the texts in what a tokenizer returned were cut; only fast tokenizers know."""
    return sum(bool(part.overflowing) for part in getattr(encoding, "encodings", None) or ())


def length_of(row: Mapping[str, Any]) -> int:
    """Return how many tokens a row has, 0 where it is no text."""
    return len(row.get("input_ids", ()))


def batches_of_one_length(rows: Sequence[Mapping[str, Any]], batch_size: int) -> tuple[list[list[int]], list[int]]:
    """Divide rows into batches of one length each, the longest first.

    Returns:
        The places of each batch's rows; and all of them in that order, with which `Predictive.from_batches` puts predictions back.

    >>> rows = [{"input_ids": [1] * length} for length in (3, 5, 3, 5, 5)]
    >>> batches_of_one_length(rows, batch_size=2)
    ([[1, 3], [4], [0, 2]], [1, 3, 4, 0, 2])
    """
    order = sorted(range(len(rows)), key=lambda index: -length_of(rows[index]))
    groups = [list(group) for _, group in itertools.groupby(order, key=lambda index: length_of(rows[index]))]
    batches = [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]
    return batches, order


def rows_of_one_length(
    inputs: Mapping[str, Tensor], *, on_the_left: bool = False, row_columns: Collection[str] = ()
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Take a batch apart into the rows of each length, without their padding; as it is where nothing is padded on the right.

    Args:
        inputs: What a collator made, with its ``attention_mask`` of shape (B, T) if anything is padded.
        on_the_left: Take padding on the left off too, where that is where it lies.
        row_columns: Names of inputs whose second dimension does not count positions.

    Returns:
        For each length the places of its rows, on the CPU, and these rows as a batch.
    """
    whole = [(torch.arange(len(next(iter(inputs.values())))), dict(inputs))]
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2 or bool(mask.all()):
        return whole
    width, lengths = mask.shape[1], mask.sum(dim=1)
    places, attended = torch.arange(width, device=mask.device), mask.bool()
    is_right = torch.equal(attended, places < lengths[:, None])
    is_left = on_the_left and torch.equal(attended, places >= width - lengths[:, None])
    if not (is_right or is_left) or not lengths.all():
        return whole
    groups: list[tuple[Tensor, dict[str, Tensor]]] = []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().flatten()
        parts = {name: value[rows] for name, value in inputs.items()}
        is_sequence = {
            name: value.ndim >= 2 and value.shape[1] == width and name not in row_columns for name, value in inputs.items()
        }
        kept = slice(0, length) if is_right else slice(width - length, width)
        groups.append((rows.cpu(), {name: value[:, kept] if is_sequence[name] else value for name, value in parts.items()}))
    return groups
