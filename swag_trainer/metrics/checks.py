"""Checks of probabilities, labels and scores, the input of every metric."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# A softmax in float32 is off by 1e-6; one in bfloat16 by several 1e-3, which would be seen in every calibration error.
_SUM_TOLERANCE = 1e-3


def checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return class probabilities as float64, shape (N, C), and their labels as integers, shape (N,).

    Raises:
        ValueError: No rows, shapes that do not fit, NaN or negative numbers, rows that do not sum to 1 within 1e-3, or labels that are
            not among the C classes.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or labels.size == 0 or probabilities.size == 0:
        raise ValueError(
            f"Probabilities of shape (N, C) and N labels are needed, got {probabilities.shape} and {labels.shape}."
            + (" For two classes give the column of each." if probabilities.ndim == 1 else "")
        )
    return checked_probabilities(probabilities), checked_labels(labels, probabilities.shape[1])


def checked_probabilities(probabilities: ArrayLike) -> np.ndarray:
    """Return class probabilities without labels as float64, shape (N, C); the errors are those of `checked`."""
    rows = checked_numbers("Probabilities", probabilities, ndim=2)
    wrong = np.flatnonzero((rows.min(axis=1) < 0) | (np.abs(rows.sum(axis=1) - 1) > _SUM_TOLERANCE))
    if len(wrong):
        first = rows[wrong[0]]
        raise ValueError(
            f"Every row of probabilities must be >= 0 and sum to 1 within {_SUM_TOLERANCE:g}; {len(wrong)} of {len(rows)} do not. "
            f"Row {wrong[0]} sums to {first.sum():.6g}, its smallest number is {first.min():.6g}. Are they logits, labels that do not "
            "exclude each other, or a softmax in half precision?"
        )
    return rows


def checked_labels(labels: ArrayLike, num_classes: int) -> np.ndarray:
    """Return labels as integers, shape (N,).

    Raises:
        ValueError: They are not whole numbers from 0 to ``num_classes`` - 1.
    """
    numbers = checked_numbers("Labels", labels, ndim=1)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= num_classes) | (numbers != np.floor(numbers)))
    if len(wrong):
        raise ValueError(
            f"Labels must be whole numbers from 0 to {num_classes - 1}, one for each column of the probabilities; {len(wrong)} of "
            f"{len(numbers)} are not. Row {wrong[0]} has {numbers[wrong[0]]:g}. Leave out rows without a label (-100, say)."
        )
    return numbers.astype(np.intp)


def checked_numbers(what: str, numbers: ArrayLike, *, ndim: int) -> np.ndarray:
    """Return numbers as float64.

    Raises:
        ValueError: They are no numbers, none, not finite, or in another number of dimensions.
    """
    array = np.asarray(numbers)
    if array.dtype.kind not in "fiub" or array.ndim != ndim or array.size == 0:
        raise ValueError(f"{what}: numbers in {ndim} dimension(s) are needed, got {array.dtype} of shape {array.shape}.")
    array = array.astype(np.float64, copy=False)
    if not np.isfinite(array).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{what} must be finite; {(~np.isfinite(array)).sum()} are not, the first at {place}.")
    return array
