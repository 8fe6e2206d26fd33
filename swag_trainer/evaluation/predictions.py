"""What one method says about the rows it is measured on, wherever its answers come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.numpy import load_file

from swag_trainer.errors import SwagError
from swag_trainer.metrics.checks import checked_numbers, checked_probabilities
from swag_trainer.metrics.ood import uncertainty_scores
from swag_trainer.prediction.predictive import Predictive

KNOWN, FOREIGN = "probabilities", "foreign_probabilities"  # the names of the arrays in a file of draws


@dataclass(frozen=True, eq=False)
class MethodPredictions:
    """Averaged class probabilities of one method; made of a `Predictive` or of each draw's probabilities.

    Attributes:
        probabilities: Mean over the draws. Shape (N, C), rows sum to 1.
        mutual_information: Of answer and weights, in nats; None from a single draw, which has none. Shape (N,).
        foreign_probabilities: The same for rows of another kind than the method was trained for, if there are any. Shape (M, C).
        foreign_mutual_information: Shape (M,).
        seconds_per_row: Time of the known rows divided by N; None if it was not measured.
        num_draws: Draws per row, the mean where rows differ.

    Raises:
        ValueError: The numbers are no probabilities, or their shapes do not fit.
    """

    probabilities: np.ndarray
    mutual_information: np.ndarray | None = None
    foreign_probabilities: np.ndarray | None = None
    foreign_mutual_information: np.ndarray | None = None
    seconds_per_row: float | None = None
    num_draws: float = 1.0

    def __post_init__(self) -> None:
        num_classes = checked_probabilities(self.probabilities).shape[1]
        _check_information(self.mutual_information, len(self.probabilities))
        if self.foreign_probabilities is not None:
            if checked_probabilities(self.foreign_probabilities).shape[1] != num_classes:
                raise ValueError(
                    f"Known rows have {num_classes} classes, foreign rows {self.foreign_probabilities.shape[1]}. Foreign rows are "
                    "answered with the same classes; their own labels are not needed."
                )
            _check_information(self.foreign_mutual_information, len(self.foreign_probabilities))
        elif self.foreign_mutual_information is not None:
            raise ValueError("There is mutual information of foreign rows, but there are no foreign rows.")
        if self.foreign_probabilities is not None and (self.mutual_information is None) != (
            self.foreign_mutual_information is None
        ):
            raise ValueError("Mutual information is needed for known and foreign rows, or for neither.")
        if not self.num_draws >= 1:
            raise ValueError(f"num_draws is the number of draws per row and must be at least 1, got {self.num_draws}.")

    @classmethod
    def from_predictive(
        cls, known: Predictive, foreign: Predictive | None = None, *, seconds_per_row: float | None = None
    ) -> MethodPredictions:
        """Take the answers of a predictor over as they are.

        Args:
            known: For the rows that have labels.
            foreign: For rows of another kind.
            seconds_per_row: What the known rows took, each.
        """
        draws = float(known.num_draws.mean())
        return cls(
            probabilities=known.probabilities,
            mutual_information=known.mutual_information if draws > 1 else None,
            foreign_probabilities=None if foreign is None else foreign.probabilities,
            foreign_mutual_information=None if foreign is None or draws <= 1 else foreign.mutual_information,
            seconds_per_row=seconds_per_row,
            num_draws=draws,
        )

    @classmethod
    def from_draws(
        cls, draws: ArrayLike | str | Path, foreign: ArrayLike | None = None, *, seconds_per_row: float | None = None
    ) -> MethodPredictions:
        """Average each draw's probabilities: of any method, an ensemble of other people's models included.

        Args:
            draws: Probabilities of each draw, shape (S, N, C), or a file that holds them: see `read_draws`.
            foreign: The same for rows of another kind, shape (S, M, C); not with a file, which holds its own.
            seconds_per_row: What the known rows took, each.

        Raises:
            SwagError: The file cannot be used.
            ValueError: The numbers are no probabilities, or their shapes do not fit.
        """
        if isinstance(draws, (str, Path)):
            if foreign is not None:
                raise ValueError(f"The foreign rows of a file are in the file, as {FOREIGN!r}; they cannot be given beside it.")
            draws, foreign = read_draws(draws)
        known_mean, known_information, count = _averaged(draws)
        foreign_mean, foreign_information, foreign_count = (None, None, count) if foreign is None else _averaged(foreign)
        if count != foreign_count:
            raise ValueError(f"Known rows have {count} draws, foreign rows {foreign_count}; the same draws answer both.")
        return cls(known_mean, known_information, foreign_mean, foreign_information, seconds_per_row, float(count))


def read_draws(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read each draw's probabilities from a file; nothing in it is executed.

    Args:
        path: A ``.npz`` or ``.safetensors`` file with the array "probabilities", shape (S, N, C), and, if there are foreign rows,
            "foreign_probabilities", shape (S, M, C).

    Returns:
        The two, the second None where there is none.

    Raises:
        SwagError: Another kind of file, a damaged one, or one without the array.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays: dict[str, Any] = {name: archive[name] for name in (KNOWN, FOREIGN) if name in archive.files}
                names = archive.files
        elif path.suffix == ".safetensors":
            arrays = load_file(path)
            names = list(arrays)
        else:
            raise SwagError(f"Draws are read from .npz and .safetensors files, got {path.name!r}. np.savez writes the first.")
    except (OSError, ValueError, EOFError, AttributeError, SafetensorError, KeyError) as error:
        raise SwagError(f"The draws in {str(path)!r} cannot be read: {error}") from error
    if KNOWN not in arrays:
        raise SwagError(f"{str(path)!r} has no array {KNOWN!r} of shape (S, N, C). It holds {sorted(names)}.")
    return arrays[KNOWN], arrays.get(FOREIGN)


def _averaged(draws: ArrayLike) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Mean probabilities (N, C), mutual information (N,) or None, and S."""
    draws = checked_numbers("Draws of shape (S, N, C)", draws, ndim=3)
    entropies = [uncertainty_scores(draw)["entropy"] for draw in draws]
    mean = draws.mean(axis=0)
    if len(draws) == 1:
        return mean, None, 1
    information = uncertainty_scores(mean)["entropy"] - np.mean(entropies, axis=0)
    return mean, np.maximum(information, 0.0), len(draws)  # Jensen; below 0 by rounding only


def _check_information(information: np.ndarray | None, num_rows: int) -> None:
    if information is not None and len(checked_numbers("Mutual information", information, ndim=1)) != num_rows:
        raise ValueError(f"{num_rows} rows have {len(information)} values of mutual information.")
