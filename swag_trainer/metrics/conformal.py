"""Split conformal prediction: sets of labels with guaranteed coverage (Vovk et al. 2005; LAC, APS, RAPS).

A nonconformity score is higher the worse a label fits an example. On n examples that nothing was fitted on, the score of the true
label is taken; a new example's set is every label whose score is at most the k-th smallest of these, k = ceil((n + 1) level). If the n rows and the new one are exchangeable,
the set holds the true label with probability >= level, whatever the model and however few the rows; that is an average over rows, not a
promise for each one. Given the n rows, the coverage of scores without ties is distributed as Beta(k, n + 1 - k), see Angelopoulos &
Bates 2021, arXiv:2107.07511, section 3.2.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

ConformalMethod = Literal["lac", "aps", "raps"]


@dataclass(frozen=True)
class ConformalSets:
    """What makes sets of labels out of probabilities; from `calibrate_conformal`.

    Attributes:
        method: "lac", "aps" or "raps", see `calibrate_conformal`.
        quantile: Labels with a score up to this are in the set; infinite where there were too few rows, and then every label is.
        level: The promised fraction of sets that hold the true label.
        num_calibration: n, the rows behind the promise.
        penalty: Of "raps": added to the score for every rank beyond ``regularised_rank``.
        regularised_rank: Of "raps": how many labels are free of the penalty.
        seed: Decides, with the row itself, the number that randomises the row's scores; None where scores are not randomised.
        exclusive: Whether a row has one true label, and its probabilities sum to 1. Sets of "lac" alone are for several, see
            `calibrate_label_sets`.
    """

    method: ConformalMethod
    quantile: float
    level: float
    num_calibration: int
    penalty: float = 0.0
    regularised_rank: int = 0
    seed: int | None = None
    exclusive: bool = True

    def __post_init__(self) -> None:
        if self.method not in get_args(ConformalMethod):
            raise ValueError(f"method must be one of {get_args(ConformalMethod)}, got {self.method!r}.")
        if not 0 < self.level < 1:
            raise ValueError(f"level is a fraction of sets between 0 and 1, got {self.level}.")
        if math.isnan(self.quantile) or self.num_calibration < 1:
            raise ValueError(f"A quantile of at least 1 row is needed, got {self.quantile} of {self.num_calibration}.")
        if not (0 <= self.penalty < math.inf and self.regularised_rank >= 0):
            raise ValueError(f"penalty and regularised_rank must be >= 0, got {self.penalty} and {self.regularised_rank}.")
        if not self.exclusive and self.method != "lac":
            raise ValueError(
                f'Sets for several true labels are those of "lac": {self.method!r} adds up probabilities that sum to 1.'
            )

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Return which labels are in each row's set. Shape (N, C), bool.

        A set of "lac" or of a randomised score may be empty: the row is unlike all that was seen. Otherwise the likeliest label is always
        in it, which can only raise the coverage.

        Args:
            probabilities: Of the same model as in the calibration. Shape (N, C), rows sum to 1 where labels exclude each other.
        """
        scores = self._scores(probabilities)
        chosen = scores <= self.quantile
        if self.method != "lac" and self.seed is None:
            chosen[np.arange(len(chosen)), np.argmax(probabilities, axis=1)] = True
        return chosen

    def _scores(self, probabilities: np.ndarray) -> np.ndarray:
        """Nonconformity score of every label. Shape (N, C)."""
        probabilities = _checked(probabilities, sum_to_1=self.exclusive)
        if self.method == "lac":
            return 1 - probabilities
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ranks = np.argsort(order, axis=1)
        mass = np.take_along_axis(np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1), ranks, axis=1)
        if self.seed is not None:
            mass = mass - _uniform_numbers(probabilities, self.seed)[:, None] * probabilities
        if self.method == "raps":
            mass = mass + self.penalty * np.maximum(0, ranks + 1 - self.regularised_rank)
        return mass


def calibrate_conformal(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    level: float,
    method: ConformalMethod = "aps",
    penalty: float = 0.01,
    regularised_rank: int = 5,
    seed: int | None = None,
) -> ConformalSets:
    """Find the quantile that makes sets hold the true label with probability at least ``level``.

    * ``"lac"``: 1 - p(label); the smallest sets on average (Sadinle et al. 2019, arXiv:1609.00451), which may be empty.
    * ``"aps"``: the probability of all labels that are at least as likely, its own included (Romano et al. 2020, arXiv:2006.02544):
      larger sets where the row is harder.
    * ``"raps"``: "aps" with a penalty on labels of high rank, for many classes (Angelopoulos et al. 2021, arXiv:2009.14193).

    Args:
        probabilities: Of rows that nothing was fitted on. Shape (n, C), rows sum to 1.
        labels: Their true classes. Shape (n,).
        level: Fraction of the sets that shall hold the true label, in (0, 1).
        method: One of the above.
        penalty: Of "raps", >= 0.
        regularised_rank: Of "raps", >= 0.
        seed: Randomises "aps" and "raps" as their authors do, by a number u per row: u p(label) is taken off the score. Coverage is then
            exact, where without it it is higher than asked for: with two classes every set holds both labels once the accuracy is below
            the level. u is a hash of the seed and the row's probabilities, as if it belonged to the row: a u by place would be the same
            for every data set of that size, whose coverage would then be off by what these numbers happen to be. Rows of equal
            probabilities share it. None: not randomised.

    Raises:
        ValueError: No rows, shapes or labels that do not fit, or an option out of range.
    """
    options = (penalty, regularised_rank) if method == "raps" else (0.0, 0)
    made = ConformalSets(method, math.inf, level, len(np.atleast_1d(labels)), *options, seed=None if method == "lac" else seed)
    scores, labels = made._scores(probabilities), np.asarray(labels)
    if labels.shape != scores.shape[:1] or not np.isin(labels, np.arange(scores.shape[1])).all():
        raise ValueError(
            f"One class number in [0, {scores.shape[1]}) for each of {len(scores)} rows is needed, got {labels.shape}."
        )
    # 100 * 0.55 is 55.00000000000001, and the 56th score is not what was asked for.
    place = math.ceil((len(labels) + 1) * level - 1e-9)
    if place > len(labels):
        return made
    true = np.sort(scores[np.arange(len(labels)), labels.astype(int)])
    return ConformalSets(method, float(true[place - 1]), level, len(labels), *options, seed=made.seed)


def calibrate_label_sets(probabilities: np.ndarray, flags: np.ndarray, *, level: float) -> ConformalSets:
    """Find the quantile that makes sets hold all true labels of a row with probability at least ``level``; a row may have none.

    The score of a row is that of "lac" for its least likely true label, 1 - min p(label), and 0 for a row without.

    Args:
        probabilities: Of rows that nothing was fitted on. Shape (n, C), each between 0 and 1.
        flags: Which labels are true, 0 or 1. Shape (n, C).
        level: Fraction of the sets that shall hold all true labels, in (0, 1).

    Raises:
        ValueError: No rows, shapes that do not fit, or a level out of range.
    """
    made = ConformalSets("lac", math.inf, level, max(1, len(np.atleast_1d(flags))), exclusive=False)
    scores, flags = made._scores(probabilities), np.asarray(flags)
    if flags.shape != scores.shape or not np.isin(flags, (0, 1)).all():
        raise ValueError(f"A 0 or 1 for each of {scores.shape} labels is needed, got {flags.shape}.")
    place = math.ceil((len(flags) + 1) * level - 1e-9)
    if place > len(flags):
        return made
    worst = np.sort(np.where(flags == 1, scores, 0.0).max(axis=1))
    return ConformalSets("lac", float(worst[place - 1]), level, len(flags), exclusive=False)


def _uniform_numbers(probabilities: np.ndarray, seed: int) -> np.ndarray:
    """Return a number in [0, 1) for each row, from a hash of the row and the seed. Shape (N,)."""
    key = str(seed).encode()[:64]
    rows = np.ascontiguousarray(probabilities + 0.0, dtype="<f8")  # -0.0 becomes 0.0
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in rows)
    return (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)) * 2.0**-53


def _checked(probabilities: np.ndarray, *, sum_to_1: bool) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.size == 0:
        raise ValueError(f"Probabilities of shape (N, C) are needed, got {probabilities.shape}.")
    if not sum_to_1:
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ValueError("Probabilities must lie between 0 and 1.")
    elif not (probabilities >= 0).all() or not np.allclose(probabilities.sum(axis=1), 1, rtol=0, atol=1e-4):
        raise ValueError("Probabilities must be >= 0 and each row must sum to 1.")
    return probabilities
