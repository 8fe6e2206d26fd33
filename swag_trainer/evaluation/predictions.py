"""Predictions of one method for the examples it is evaluated on: from a predictor, from draws, or from a file of draws."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.numpy import load_file

from swag_trainer.errors import SwagError
from swag_trainer.metrics.checks import checked_numbers, checked_probabilities
from swag_trainer.metrics.ood import uncertainty_scores
from swag_trainer.posterior.regular_file import opened
from swag_trainer.prediction.predictive import Predictive

# Names of the arrays in a file of draws; the last one is what files of earlier versions call the second.
_IN_DISTRIBUTION, _OOD, _OLD_OOD = "probabilities", "ood_probabilities", "foreign_probabilities"
# What numpy and zipfile raise for damaged archives, and for headers that ask for more memory than there is.
_DAMAGED = (
    AttributeError,
    BadZipFile,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    SafetensorError,
    SyntaxError,
    TypeError,
    ValueError,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class MethodPredictions:
    """Averaged class probabilities of one method; made of a `Predictive` or of each draw's probabilities.

    Attributes:
        probabilities: Mean over the draws. Shape (N, C), rows sum to 1.
        mutual_information: Of prediction and weights, in nats; None from a single draw, which has none. Shape (N,).
        ood_probabilities: The same for out-of-distribution (OOD) examples, if there are any. Shape (M, C).
        ood_mutual_information: Shape (M,).
        ood_scores: Further scores by which examples can be called OOD, such as "energy" and "ood_score", by name: of the
            in-distribution examples and of the OOD examples, None where there are none. Shapes (N,) and (M,).
        seconds_per_example: Time of the in-distribution examples divided by N; None if it was not measured.
        num_draws: Draws per example, the mean where examples differ.
        num_trainings: How many trainings the method needs; None where that is not known.
        fit_seconds: What it took to fit the method after them, such as a temperature; None where nothing was, or where it was not measured.

    Raises:
        ValueError: The numbers are no probabilities, or their shapes do not fit.
    """

    probabilities: np.ndarray
    mutual_information: np.ndarray | None = None
    ood_probabilities: np.ndarray | None = None
    ood_mutual_information: np.ndarray | None = None
    ood_scores: Mapping[str, tuple[np.ndarray, np.ndarray | None]] = field(default_factory=dict)
    seconds_per_example: float | None = None
    num_draws: float = 1.0
    num_trainings: int | None = None
    fit_seconds: float | None = None

    def __post_init__(self) -> None:
        num_classes = checked_probabilities(self.probabilities).shape[1]
        _check_information(self.mutual_information, len(self.probabilities))
        if self.ood_probabilities is not None:
            if checked_probabilities(self.ood_probabilities).shape[1] != num_classes:
                raise ValueError(
                    f"In-distribution examples have {num_classes} classes, OOD examples {self.ood_probabilities.shape[1]}. OOD examples "
                    "are predicted with the same classes; their own labels are not needed."
                )
            _check_information(self.ood_mutual_information, len(self.ood_probabilities))
        elif self.ood_mutual_information is not None:
            raise ValueError("There is mutual information of OOD examples, but there are no OOD examples.")
        if self.ood_probabilities is not None and (self.mutual_information is None) != (self.ood_mutual_information is None):
            raise ValueError("Mutual information is needed for in-distribution and OOD examples, or for neither.")
        for name, (in_distribution, ood) in self.ood_scores.items():
            parts = [() if values is None else values for values in (in_distribution, ood)]
            lengths = [len(values) and len(checked_numbers(f"The score {name!r}", values, ndim=1)) for values in parts]
            expected = [len(self.probabilities), 0 if self.ood_probabilities is None else len(self.ood_probabilities)]
            if lengths != expected:
                raise ValueError(f"{expected} in-distribution and OOD examples have {lengths} values of the score {name!r}.")
        if not self.num_draws >= 1:
            raise ValueError(f"num_draws is the number of draws per example and must be at least 1, got {self.num_draws}.")
        if self.num_trainings is not None and self.num_trainings < 1:
            raise ValueError(f"num_trainings is the number of trainings and must be at least 1, got {self.num_trainings}.")

    @classmethod
    def from_predictive(
        cls, predictive: Predictive, ood: Predictive | None = None, *, seconds_per_example: float | None = None
    ) -> MethodPredictions:
        """Take over the predictions of a predictor.

        Args:
            predictive: For the in-distribution examples, which have labels.
            ood: For the out-of-distribution examples.
            seconds_per_example: Time of the in-distribution examples, each.
        """
        draws = float(predictive.num_draws.mean())
        scores = {}
        for name in ("energy", "ood_score"):
            in_distribution, outside = getattr(predictive, name), getattr(ood, name, None)
            if in_distribution is not None and (ood is None or outside is not None):
                scores[name] = (in_distribution, outside)
        return cls(
            probabilities=predictive.probabilities,
            mutual_information=predictive.mutual_information if draws > 1 else None,
            ood_probabilities=None if ood is None else ood.probabilities,
            ood_mutual_information=None if ood is None or draws <= 1 else ood.mutual_information,
            ood_scores=scores,
            seconds_per_example=seconds_per_example,
            num_draws=draws,
        )

    @classmethod
    def from_draws(
        cls, draws: ArrayLike | str | Path, ood: ArrayLike | None = None, *, seconds_per_example: float | None = None
    ) -> MethodPredictions:
        """Average each draw's probabilities: of any method, such as an ensemble.

        Args:
            draws: Probabilities of each draw, shape (S, N, C), or a file that holds them: see `read_draws`.
            ood: The same for out-of-distribution examples, shape (S, M, C); not with a file, which holds its own.
            seconds_per_example: Time of the in-distribution examples, each.

        Raises:
            SwagError: The file cannot be used.
            ValueError: The numbers are no probabilities, or their shapes do not fit.
        """
        if isinstance(draws, (str, Path)):
            if ood is not None:
                raise ValueError(f"The OOD examples of a file are in the file, as {_OOD!r}; they cannot be given beside it.")
            draws, ood = read_draws(draws)
        mean, information, count = _averaged(draws)
        ood_mean, ood_information, ood_count = (None, None, count) if ood is None else _averaged(ood)
        if count != ood_count:
            raise ValueError(
                f"In-distribution examples have {count} draws, OOD examples {ood_count}; both need the same draws."
            )
        averaged = (mean, information, ood_mean, ood_information)
        return cls(*averaged, seconds_per_example=seconds_per_example, num_draws=float(count))


def read_draws(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read each draw's probabilities from a file; nothing in it is executed.

    Args:
        path: A ``.npz`` or ``.safetensors`` file with the array "probabilities", shape (S, N, C), and, if there are
            out-of-distribution examples, "ood_probabilities" (in files of earlier versions "foreign_probabilities"), shape (S, M, C).

    Returns:
        The two, the second None where there is none.

    Raises:
        SwagError: Another kind of file, a damaged one, or one without the array.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with opened(path) as (file, _), np.load(file, allow_pickle=False) as archive:
                arrays: dict[str, Any] = {
                    name: archive[name] for name in (_IN_DISTRIBUTION, _OOD, _OLD_OOD) if name in archive.files
                }
                names = archive.files
        elif path.suffix == ".safetensors":
            arrays = load_file(path)
            names = list(arrays)
        else:
            raise SwagError(f"Draws are read from .npz and .safetensors files, got {path.name!r}. np.savez writes the first.")
    except _DAMAGED as error:
        raise SwagError(f"The draws in {str(path)!r} cannot be read: {error}") from error
    if _IN_DISTRIBUTION not in arrays:
        raise SwagError(f"{str(path)!r} has no array {_IN_DISTRIBUTION!r} of shape (S, N, C). It holds {sorted(names)}.")
    return arrays[_IN_DISTRIBUTION], arrays.get(_OOD, arrays.get(_OLD_OOD))


def _averaged(draws: ArrayLike) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Mean probabilities (N, C), mutual information (N,) or None, and S."""
    draws = checked_numbers("Draws of shape (S, N, C)", draws, ndim=3)
    entropies = [uncertainty_scores(draw)["entropy"] for draw in draws]
    mean = draws.mean(axis=0)
    if len(draws) == 1:
        return mean, None, 1
    information = uncertainty_scores(mean)["entropy"] - np.mean(entropies, axis=0)
    return mean, np.maximum(information, 0.0), len(draws)  # Jensen; below 0 by rounding only


def _check_information(information: np.ndarray | None, num_examples: int) -> None:
    if information is not None and len(checked_numbers("Mutual information", information, ndim=1)) != num_examples:
        raise ValueError(f"{num_examples} examples have {len(information)} values of mutual information.")
