"""CardResults: metrics for a model card, together with what they were measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import PurePosixPath, PureWindowsPath
from sys import float_info

from swag_trainer.errors import SwagError, shortened
from swag_trainer.evaluation.comparison import Comparison
from swag_trainer.evaluation.earlier import OLD_CARD_KEYS, renamed
from swag_trainer.metrics.bootstrap import Interval as ValueWithLimits

Interval = tuple[float, float]


@dataclass(frozen=True)
class CardResults:
    """One measurement of one or several methods, all on the same examples.

    A card prints these metrics and nothing else; without their circumstances they would mean little. Made by hand, or by
    `Measurement.to_card`.

        CardResults(
            dataset="glue/sst2", split="validation", revision="5503434", num_examples=872, num_samples=30, seed=0, num_bins=15,
            metrics={"MAP": {"accuracy": 0.93, "ECE": 0.051}, "SWAG": {"accuracy": 0.93, "ECE": 0.031}},
        )

    Attributes:
        dataset: Its name, or its id on the Hub; never a path of a machine.
        split: Which part of it.
        revision: Commit of the data set, None where it has none.
        num_examples: N, how many examples were predicted.
        num_samples: S, how many draws were averaged.
        seed: What the draws depended on.
        num_bins: How many bins of equal width the calibration error has.
        metrics: ``{method: {metric: value}}``, the same metrics for every method, None where a method cannot have one: a single pass has
            no mutual information to detect out-of-distribution examples by. The method that the posterior stands for is "SWAG", at the
            posterior's own scale.
        intervals: ``{method: {metric: (low, high)}}`` of any of these metrics, by bootstrap over the examples.
        interval_level: What the intervals are meant to cover, such as 0.95; None where there are none.
        seconds_per_example: ``{method: seconds}`` that one example took, of any of the methods.
        num_trainings: ``{method: number}`` of trainings that the method needs, of any of the methods.
        fit_seconds: ``{method: seconds}`` that it took to fit the method after them, of any of the methods.
        scale: Factor of the covariance that "SWAG" was measured with; None for the posterior's own.
        temperature: By which the logits of "SWAG" were divided; None for none.
        ood: Name of the out-of-distribution data that metrics such as an AUROC compare with; None where there was none.
        num_ood: How many examples of it were predicted.
        versions: Versions of the libraries that measured.
        comparisons: Of the posterior's method with others on the same examples, as `swag_trainer.evaluation.comparison.compare` returns.

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
    metrics: Mapping[str, Mapping[str, float | None]]
    intervals: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    interval_level: float | None = None
    seconds_per_example: Mapping[str, float] = field(default_factory=dict)
    num_trainings: Mapping[str, int] = field(default_factory=dict)
    fit_seconds: Mapping[str, float] = field(default_factory=dict)
    scale: float | None = None
    temperature: float | None = None
    ood: str | None = None
    num_ood: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()

    def __post_init__(self) -> None:
        for name in ("dataset", "split", "revision", "ood"):
            _check_text(name, getattr(self, name), optional=name in ("revision", "ood"))
        for name in ("dataset", "ood"):
            if _is_local(getattr(self, name)):
                raise ValueError(
                    f"CardResults({name}=...) is published, got the local path {getattr(self, name)!r}. "
                    "Give the data set's name or its id on the Hub."
                )
        self._together("ood", "num_ood")
        for name, least in (("num_examples", 1), ("num_samples", 1), ("seed", 0), ("num_bins", 1), ("num_ood", 1)):
            value = getattr(self, name)
            if name == "num_ood" and value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"CardResults({name}=...) is a whole number of at least {least}, got {shortened(repr(value))}."
                )
            object.__setattr__(self, name, int(value))  # NumPy's integers cannot be written as YAML
        object.__setattr__(self, "metrics", _checked_metrics(self.metrics))
        object.__setattr__(self, "intervals", _checked_intervals(self.intervals, self.metrics))
        self._together("intervals", "interval_level")
        for name, fits, range_ in (
            ("interval_level", lambda value: 0 < value < 1, "between 0 and 1, such as 0.95"),
            ("scale", lambda value: value >= 0, "of at least 0"),
            ("temperature", lambda value: value > 0, "above 0"),
        ):
            value = getattr(self, name)
            if value is not None:
                if not _is_finite(value) or not fits(value):
                    raise ValueError(
                        f"CardResults({name}=...) is a finite number {range_}, or None, got {shortened(repr(value))}."
                    )
                object.__setattr__(self, name, float(value))
        for name in ("seconds_per_example", "fit_seconds"):
            object.__setattr__(self, name, _checked_seconds(name, getattr(self, name), self.metrics))
        object.__setattr__(self, "num_trainings", _checked_trainings(self.num_trainings, self.metrics))
        object.__setattr__(self, "versions", _checked_versions(self.versions))
        object.__setattr__(self, "comparisons", _checked_comparisons(self.comparisons))

    def _together(self, first: str, second: str) -> None:
        """Refuse one without the other."""
        if bool(getattr(self, first)) != (getattr(self, second) is not None):
            raise ValueError(
                f"CardResults({first}=..., {second}=...) come together or not at all, got {getattr(self, first)!r} and "
                f"{getattr(self, second)!r}."
            )

    def to_json(self) -> str:
        """Return the record as JSON text, floats written so that they come back exactly."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> CardResults:
        """Read what `to_json` returned; ``CardResults.from_json(results.to_json()) == results``.

        What an earlier version did not record yet keeps its default, and its old keys are read; an unknown key is refused.

        Raises:
            SwagError: The text is not valid JSON, or not a record of this kind.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SwagError(f"CardResults.from_json() was given a text that is not valid JSON: {error}") from error
        if isinstance(document, dict):
            document = renamed(document, OLD_CARD_KEYS)
        known = {item.name for item in fields(cls)}
        needed = {item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING}
        if not isinstance(document, dict) or not needed <= set(document) <= known:
            found = sorted(document) if isinstance(document, dict) else type(document).__name__
            raise SwagError(
                f"CardResults.from_json() expects an object that states {sorted(needed)}, and of the rest only "
                f"{sorted(known - needed)}; it got {str(found)[:300]}."
            )
        try:
            comparisons = [
                Comparison(**each | {"difference": ValueWithLimits(**each["difference"])})
                for each in document.get("comparisons", [])
            ]
            return cls(**document | {"comparisons": comparisons})
        except (ValueError, KeyError, TypeError) as error:
            raise SwagError(f"CardResults.from_json() was given an invalid record. {error}") from error


def _is_local(name: str | None) -> bool:
    if name is None:
        return False
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    return absolute or name.startswith(("~", "./", "../", ".\\", "..\\")) or name.lower().startswith("file:")


def _is_finite(value: object) -> bool:
    # Not math.isfinite, which raises OverflowError for the whole numbers that no float can hold.
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= float_info.max


def _check_text(name: str, value: object, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"CardResults({name}=...) must be a non-empty text{' or None' * optional}, got {shortened(repr(value))}."
        )


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"CardResults({name}=...) is a mapping, got {shortened(repr(value))}.")


def _checked_metrics(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Copy the metrics as plain floats; a later change of the caller's dictionaries must not change the record."""
    _check_mapping("metrics", metrics)
    if not metrics:
        raise ValueError("CardResults(metrics=...) needs the metrics of at least one method, got none.")
    first_method, first = next(iter(metrics.items()))
    copied: dict[str, dict[str, float | None]] = {}
    for method, values in metrics.items():
        _check_mapping("metrics", values)
        if not values:
            raise ValueError(f"CardResults(metrics=...) has no metrics for the method {method!r}.")
        if set(values) != set(first):
            odd = sorted(set(values) ^ set(first), key=str)[0]
            raise ValueError(
                f"CardResults(metrics=...) compares methods by the same metrics, but {odd!r} is given for only one of "
                f"{first_method!r} and {method!r}."
            )
        for metric, value in values.items():
            if not all(isinstance(name, str) and name.strip() for name in (method, metric)):
                raise ValueError(f"CardResults(metrics=...) names methods and metrics by texts, got {method!r} and {metric!r}.")
            if value is not None and not _is_finite(value):
                raise ValueError(
                    f"CardResults(metrics=...) holds finite numbers, got {shortened(repr(value))} for {metric!r} of {method!r}."
                )
        copied[method] = {metric: None if values[metric] is None else float(values[metric]) for metric in first}
    return copied


def _checked_intervals(
    intervals: Mapping[str, Mapping[str, Interval]], metrics: Mapping[str, Mapping[str, float | None]]
) -> dict[str, dict[str, Interval]]:
    """Copy the intervals as pairs of plain floats. The value itself may lie outside, where the bootstrap was not corrected for bias."""
    _check_mapping("intervals", intervals)
    copied: dict[str, dict[str, Interval]] = {}
    for method, limits in intervals.items():
        _check_mapping("intervals", limits)
        copied[method] = {}
        for metric, interval in limits.items():
            if method not in metrics or metrics[method].get(metric) is None:
                raise ValueError(f"CardResults(intervals=...) has one for {metric!r} of {method!r}, which has no value.")
            pair = tuple(interval) if isinstance(interval, (tuple, list)) else ()
            if len(pair) != 2 or not all(map(_is_finite, pair)) or pair[0] > pair[1]:
                raise ValueError(
                    f"CardResults(intervals=...) holds pairs of finite numbers, the lower one first, got {shortened(repr(interval))} for "
                    f"{metric!r} of {method!r}."
                )
            copied[method][metric] = (float(pair[0]), float(pair[1]))
    return copied


def _checked_seconds(
    name: str, seconds: Mapping[str, float], metrics: Mapping[str, Mapping[str, float | None]]
) -> dict[str, float]:
    _check_mapping(name, seconds)
    for method, value in seconds.items():
        if method not in metrics or not _is_finite(value) or value < 0:
            raise ValueError(f"CardResults({name}=...) gives {value!r} seconds to {method!r}; methods: {list(metrics)}.")
    return {method: float(value) for method, value in seconds.items()}


def _checked_trainings(counts: Mapping[str, int], metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, int]:
    _check_mapping("num_trainings", counts)
    for method, value in counts.items():
        if method not in metrics or not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"CardResults(num_trainings=...) gives {shortened(repr(value))} trainings to {method!r}; methods: {list(metrics)}."
            )
    return {method: int(value) for method, value in counts.items()}


def _checked_versions(versions: Mapping[str, str]) -> dict[str, str]:
    _check_mapping("versions", versions)
    for library, version in versions.items():
        if not all(isinstance(text, str) and text.strip() for text in (library, version)):
            raise ValueError(f"CardResults(versions=...) names libraries and versions by texts, got {library!r}: {version!r}.")
    return dict(versions)


def _checked_comparisons(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    for each in comparisons:
        if not isinstance(each, Comparison):
            raise ValueError(f"CardResults(comparisons=...) holds what compare() returns, got {shortened(repr(each))}.")
        _check_text("comparisons", each.method)
        _check_text("comparisons", each.other)
        numbers = (each.difference.value, each.difference.low, each.difference.high, each.num_examples, each.num_ood)
        if not all(map(_is_finite, numbers)):
            raise ValueError(
                f"CardResults(comparisons=...) holds finite numbers, got {shortened(repr(numbers))} of {each.other!r}."
            )
    return tuple(comparisons)
