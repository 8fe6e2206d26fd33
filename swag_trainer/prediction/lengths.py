"""Rows of one length share a batch: padding would cost every draw what it costs one plain prediction, and change its sums a little."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any


def length_of(row: Mapping[str, Any]) -> int:
    """Return how many tokens a row has, 0 where it is no text."""
    return len(row.get("input_ids", ()))


def batches_of_one_length(rows: Sequence[Mapping[str, Any]], batch_size: int) -> tuple[list[list[int]], list[int]]:
    """Divide rows into batches of one length each, the longest first.

    Returns:
        The places of each batch's rows; and all of them in that order, with which `Predictive.from_batches` puts answers back.

    >>> rows = [{"input_ids": [1] * length} for length in (3, 5, 3, 5, 5)]
    >>> batches_of_one_length(rows, batch_size=2)
    ([[1, 3], [4], [0, 2]], [1, 3, 4, 0, 2])
    """
    order = sorted(range(len(rows)), key=lambda index: -length_of(rows[index]))
    groups = [list(group) for _, group in itertools.groupby(order, key=lambda index: length_of(rows[index]))]
    batches = [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]
    return batches, order
