"""CardResults: figures that somebody measured, together with what they were measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from pathlib import PurePosixPath, PureWindowsPath


@dataclass(frozen=True)
class CardResults:
    """One measurement of one or several methods, all on the same examples.

    A card prints these figures and nothing else; without their circumstances they would say little.

        CardResults(
            dataset="glue/sst2", split="validation", revision="5503434", num_examples=872, num_samples=30, seed=0, num_bins=15,
            metrics={"MAP": {"accuracy": 0.93, "ECE": 0.051}, "SWAG": {"accuracy": 0.93, "ECE": 0.031}},
        )

    Attributes:
        dataset: Its name, or its id on the Hub; never a path of the machine that measured.
        split: Which part of it.
        revision: Commit of the data set, None where it has none.
        num_examples: N, how many examples were answered.
        num_samples: S, how many draws were averaged.
        seed: What the draws depended on.
        num_bins: How many bins of equal width the calibration error has.
        metrics: ``{method: {metric: value}}``, the same metrics for every method. The method that the posterior stands for is
            "SWAG", at the posterior's own scale.

    Raises:
        ValueError: Something is missing, not finite, out of range, or given for one method only.
    """

    dataset: str
    split: str
    revision: str | None
    num_examples: int
    num_samples: int
    seed: int
    num_bins: int
    metrics: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        for name in ("dataset", "split", "revision"):
            _check_text(name, getattr(self, name), optional=name == "revision")
        if PurePosixPath(self.dataset).is_absolute() or PureWindowsPath(self.dataset).is_absolute() or self.dataset[0] == "~":
            raise ValueError(
                f"CardResults(dataset=...) is printed for everybody, got the local path {self.dataset!r}. "
                "Give the data set's name or its id on the Hub."
            )
        for name, least in (("num_examples", 1), ("num_samples", 1), ("seed", 0), ("num_bins", 1)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"CardResults({name}=...) is a whole number of at least {least}, got {value!r}.")
            object.__setattr__(self, name, int(value))  # NumPy's integers are no YAML
        object.__setattr__(self, "metrics", _checked_metrics(self.metrics))


def _check_text(name: str, value: object, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"CardResults({name}=...) must be a text with something in it{' or None' * optional}, got {value!r}.")


def _checked_metrics(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Copy the figures as plain floats; a later change of the caller's dictionaries must not change the record."""
    if not metrics:
        raise ValueError("CardResults(metrics=...) needs the figures of at least one method, got none.")
    first_method, first = next(iter(metrics.items()))
    copied: dict[str, dict[str, float]] = {}
    for method, figures in metrics.items():
        if not figures:
            raise ValueError(f"CardResults(metrics=...) has no figures for the method {method!r}.")
        if set(figures) != set(first):
            odd = sorted(set(figures) ^ set(first), key=str)[0]
            raise ValueError(
                f"CardResults(metrics=...) compares methods by the same metrics, but {odd!r} is given for only one of "
                f"{first_method!r} and {method!r}."
            )
        for metric, value in figures.items():
            if not all(isinstance(name, str) and name.strip() for name in (method, metric)):
                raise ValueError(f"CardResults(metrics=...) names methods and metrics by texts, got {method!r} and {metric!r}.")
            if not isinstance(value, Real) or isinstance(value, bool) or not isfinite(value):
                raise ValueError(f"CardResults(metrics=...) holds finite numbers, got {value!r} for {metric!r} of {method!r}.")
        copied[method] = {metric: float(figures[metric]) for metric in first}
    return copied
