"""What was chosen and calibrated for a posterior on held-out data: the record that travels in its file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MAX_RECORDS = 1000
MAX_NAME = 200
MAX_TEMPERATURE = 1e6
_GOALS = ("risk", "coverage")
_METHODS = ("lac", "aps", "raps")


@dataclass(frozen=True)
class CalibratedThreshold:
    """From which score of the top label on a prediction is given, and how that went on the calibration examples.

    Attributes:
        goal: "risk", the largest share of wrong answers among those given, or "coverage", the share of rows that are answered.
        target: That share.
        threshold: Predict where the top label's averaged probability is >= this; None where no threshold reached the goal.
        coverage: Fraction of the calibration examples that are predicted.
        risk: Fraction of wrong predictions among them; None where there are none.
        level: Probability with which the *true* risk is at most the target; None for a threshold that fits these rows only.
    """

    goal: str
    target: float
    threshold: float | None
    coverage: float
    risk: float | None
    level: float | None = None

    def __post_init__(self) -> None:
        if self.goal not in _GOALS:
            raise ValueError(f"goal must be one of {_GOALS}, got {self.goal[:50]!r}.")
        _check_share("target", self.target)
        for name in ("threshold", "coverage", "risk", "level"):
            _check_share(name, getattr(self, name))


@dataclass(frozen=True)
class ConformalQuantile:
    """The numbers of `swag_trainer.metrics.conformal.ConformalSets`, not randomised, and how they did on the calibration rows.

    Attributes:
        method: "lac", "aps" or "raps".
        level: The promised share of sets that hold the true label, in (0, 1).
        quantile: Labels with a score up to this are in the set; None where there were too few rows, and then every label is.
        mean_size: Mean number of labels in the sets of the calibration rows.
        penalty, regularised_rank: Of "raps".
    """

    method: str
    level: float
    quantile: float | None
    mean_size: float
    penalty: float = 0.0
    regularised_rank: int = 0

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(f"method must be one of {_METHODS}, got {self.method[:50]!r}.")
        _check_share("level", self.level)
        for name in ("quantile", "mean_size", "penalty", "regularised_rank"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {str(number)[:50]}.")


@dataclass(frozen=True)
class Tuning:
    """What `SwagPosterior.tune` found out. It holds for the posterior's scale at that time, which stands in `Provenance.scale`.

    Negative log-likelihoods (NLL) are means over rows, in nats.

    Attributes:
        temperature: T > 0; each draw's logits are divided by it before the softmax.
        dataset, split, revision: The held-out data: name on the Hub or one that was given, split, commit.
        num_examples: Rows that scale and temperature were chosen on.
        num_calibration: Other rows of the same data, that only thresholds and quantiles were calibrated and metrics measured on;
            0 if none were held back, and the metrics are then of the rows that the choice was made on.
        num_samples, seed: The draws that all of this was done with.
        scale_nll: NLL of each candidate, [scale, its best temperature, NLL] in turn, on the rows that the choice was made on.
        nll: NLL with the chosen scale and temperature on the calibration rows.
        baselines: NLL of other methods on the calibration examples, by name: "SWA", "SWA, temperature", and "MAP, temperature" (the last
            snapshot), with temperatures chosen on the same rows as SWAG's.
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
    scale_nll: list[list[float]] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    thresholds: list[CalibratedThreshold] = field(default_factory=list)
    conformal: list[ConformalQuantile] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature must be > 0 and at most {MAX_TEMPERATURE:g}, got {str(self.temperature)[:50]}.")
        for name, fewest in (("num_examples", 1), ("num_calibration", 0), ("num_samples", 1)):
            if not fewest <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} must be at least {fewest}, got {str(getattr(self, name))[:50]}.")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must fit into 64 bits, got {str(self.seed)[:50]}.")
        for name in ("scale_nll", "baselines", "thresholds", "conformal"):
            if len(getattr(self, name)) > MAX_RECORDS:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; more than {MAX_RECORDS} are not read.")
        for name in (self.dataset, self.split, self.revision, *self.baselines):
            if name is not None and (len(name) > MAX_NAME or not name.isprintable()):
                raise ValueError(f"a name is printable and has at most {MAX_NAME} characters, got {name[:50]!r}.")
        if any(len(entry) != 3 for entry in self.scale_nll):
            raise ValueError("scale_nll holds entries of scale, temperature and NLL.")
        numbers = [self.nll, *self.baselines.values(), *(number for entry in self.scale_nll for number in entry)]
        if not all(-math.inf < number < math.inf for number in numbers):
            raise ValueError("an NLL, a scale or a temperature is not finite.")


def _check_share(name: str, share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {str(share)[:50]}.")
