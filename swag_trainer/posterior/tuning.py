"""Record of a tuning: what was chosen and calibrated for a posterior on held-out data; it travels in the posterior's file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from swag_trainer.posterior.design import Design

Center = Literal["mean", "tail", "last"]
CENTER_NAMES: dict[Center, str] = {"mean": "mean", "tail": "mean of the last snapshots", "last": "last snapshot"}

MAX_RECORDS = 1000
MAX_NAME = 200
MAX_TEMPERATURE = 1e6
_GOALS = ("risk", "coverage")
_METHODS = ("lac", "aps", "raps")


@dataclass(frozen=True)
class CalibratedThreshold:
    """Threshold for abstaining: from which score of the top label on a prediction is given, with its coverage and risk.

    Attributes:
        goal: "risk", the largest fraction of wrong predictions among those given, or "coverage", the fraction of examples predicted.
        target: That fraction.
        threshold: Predict where the top label's averaged probability is >= this; None where no threshold reached the goal.
        coverage: Fraction of the calibration examples that are predicted.
        risk: Fraction of wrong predictions among them; None where there are none.
        level: Probability with which the *true* risk is at most the target; None for a threshold that fits these examples only.
    """

    goal: str
    target: float
    threshold: float | None
    coverage: float
    risk: float | None
    level: float | None = None

    def __post_init__(self) -> None:
        _check_choice("goal", self.goal, _GOALS)
        _check_share("target", self.target)
        for name in ("threshold", "coverage", "risk", "level"):
            _check_share(name, getattr(self, name))


@dataclass(frozen=True)
class ConformalQuantile:
    """The numbers of `swag_trainer.metrics.conformal.ConformalSets`, not randomised, with the size of the sets.

    Attributes:
        method: "lac", "aps" or "raps".
        level: The promised fraction of sets that hold the true label, in (0, 1).
        quantile: Labels with a score up to this are in the set; None where there were too few examples, and then every label is.
        mean_size: Mean number of labels in the sets of the calibration examples.
        penalty, regularised_rank: Of "raps".
    """

    method: str
    level: float
    quantile: float | None
    mean_size: float
    penalty: float = 0.0
    regularised_rank: int = 0

    def __post_init__(self) -> None:
        _check_choice("method", self.method, _METHODS)
        _check_share("level", self.level)
        for name in ("quantile", "mean_size", "penalty", "regularised_rank"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {str(number)[:50]}.")


@dataclass(frozen=True)
class Candidate:
    """One of the ways to draw that `swag_trainer.tune` chose from.

    Attributes:
        center: The weights around which is drawn, see `Sampling.center`.
        scale: Factor of the covariance; 0 for a single pass at the centre.
        dropout: Whether the draws drop out.
        temperature: Its best temperature on all examples.
        nll: Mean negative log-likelihood (NLL) there, in nats, on the examples that the choice was made on.
    """

    center: Center
    scale: float
    dropout: bool
    temperature: float
    nll: float

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)
        if not 0 <= self.scale < math.inf or not -math.inf < self.nll < math.inf:
            raise ValueError(f"a candidate's scale and NLL must be finite, got {str((self.scale, self.nll))[:100]}.")


@dataclass(frozen=True, repr=False)
class Tuning:
    """What `swag_trainer.tune` found. It holds for the posterior's scale at that time, `PosteriorRecord.scale`.

    Negative log-likelihoods (NLL) are means over examples, in nats.

    Attributes:
        temperature: T > 0; each draw's logits are divided by it before the softmax.
        dataset, split, revision: The held-out data: name on the Hub or one that was given, split, commit.
        num_examples: How many examples centre, scale, dropout and temperature were chosen on.
        num_calibration: How many examples thresholds and quantiles were calibrated and metrics measured on. With ``num_folds`` they are the
            same. Without, as in files of earlier versions, they are others; 0 if none were held back, and the metrics are then of the
            examples that the choice was made on.
        num_samples, seed: The draws that all of this was done with.
        nll: NLL with what was chosen, on the calibration examples.
        center: The weights around which is drawn, see `Sampling.center`.
        dropout: Whether the draws drop out.
        design: How the draws relate to each other, see `Sampling.design`.
        num_folds: Of cross-fitting: thresholds, quantiles, ``nll`` and ``baselines`` are of predictions for each fold with what was chosen
            on the other folds. 0: no cross-fitting.
        relative_energy: Variance of the draws as a fraction of the squared length of the mean, see `SwagPosterior.relative_energy`; None for
            a family that has none.
        candidates: What was chosen from.
        baselines: NLL of other methods on the calibration examples, by name: "SWA", "SWA, temperature", and "MAP, temperature" (the last
            snapshot), with temperatures chosen on the same examples as the posterior's.
        thresholds: For abstaining.
        conformal: For sets of labels.
    """

    temperature: float
    dataset: str
    num_examples: int
    num_calibration: int
    num_samples: int
    seed: int
    nll: float
    split: str | None = None
    revision: str | None = None
    center: Center = "mean"
    dropout: bool = False
    design: Design = "matched"
    num_folds: int = 0
    relative_energy: float | None = None
    candidates: list[Candidate] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    thresholds: list[CalibratedThreshold] = field(default_factory=list)
    conformal: list[ConformalQuantile] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)
        for name, fewest in (("num_examples", 1), ("num_calibration", 0), ("num_samples", 1), ("num_folds", 0)):
            if not fewest <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} must be at least {fewest}, got {str(getattr(self, name))[:50]}.")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must fit into 64 bits, got {str(self.seed)[:50]}.")
        for name in ("candidates", "baselines", "thresholds", "conformal"):
            if len(getattr(self, name)) > MAX_RECORDS:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; more than {MAX_RECORDS} are not read.")
        for name in (self.dataset, self.split, self.revision, *self.baselines):
            if name is not None and (len(name) > MAX_NAME or not name.isprintable()):
                raise ValueError(f"a name is printable and has at most {MAX_NAME} characters, got {name[:50]!r}.")
        if not all(-math.inf < number < math.inf for number in (self.nll, *self.baselines.values())):
            raise ValueError("an NLL is not finite.")
        if self.relative_energy is not None and not 0 <= self.relative_energy < math.inf:
            raise ValueError(f"relative_energy must be finite and >= 0, got {str(self.relative_energy)[:50]}.")

    @property
    def center_name(self) -> str:
        """The centre in words."""
        return CENTER_NAMES[self.center]

    def __repr__(self) -> str:
        """What was chosen and what it came to; the lists are left out, see `__str__`."""
        dropout = ", dropout" if self.dropout else ""
        return (
            f"Tuning(center={self.center!r}{dropout}, temperature={self.temperature:.3g}, nll={self.nll:.4g}, dataset={self.dataset!r}, "
            f"num_calibration={self.num_calibration})"
        )

    def __str__(self) -> str:
        """What was chosen, how it compares with the baselines, and what was calibrated, in lines."""
        is_one_pass = self.relative_energy == 0 and not self.dropout
        drawn = (
            f"one pass at the {self.center_name}" if is_one_pass else f"{self.num_samples} draws around the {self.center_name}"
        )
        drawn += " with dropout" if self.dropout else ""
        compared = "".join(f"; {name} {nll:.4f}" for name, nll in self.baselines.items())
        lines = [
            f"Tuning on {self.num_examples} examples of {self.dataset!r}: {drawn}, temperature {self.temperature:.3f}",
            f"  NLL {self.nll:.4f}{' (cross-fitted)' if self.num_folds else ''}{compared}",
        ]
        for each in self.thresholds:
            found = "no threshold" if each.threshold is None else f"score >= {each.threshold:.3f}, coverage {each.coverage:.2f}"
            lines.append(f"  {each.goal} {each.target:g}: {found}")
        lines += [f"  {each.method} sets for {each.level:g}: {each.mean_size:.2f} labels on average" for each in self.conformal]
        return "\n".join(lines)


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a `Tuning` as this version writes it, made of one of any version.

    Earlier versions tried scales around the mean alone: "scale_nll" held [scale, temperature, NLL] of each. Nothing in the document is
    trusted to have the right type: what cannot be converted stays as it is, for the reader to refuse.
    """
    entries = document.get("scale_nll")
    if not isinstance(entries, list) or not all(isinstance(entry, list) and len(entry) == 3 for entry in entries):
        return dict(document)
    candidates = [
        {"center": "mean", "scale": scale, "dropout": False, "temperature": temperature, "nll": nll}
        for scale, temperature, nll in entries
    ]
    return {name: value for name, value in document.items() if name != "scale_nll"} | {"candidates": candidates}


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature <= MAX_TEMPERATURE:
        raise ValueError(f"temperature must be > 0 and at most {MAX_TEMPERATURE:g}, got {str(temperature)[:50]}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value[:50]!r}.")


def _check_share(name: str, share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {str(share)[:50]}.")
