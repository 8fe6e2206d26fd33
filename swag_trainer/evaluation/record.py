"""Measurement: the record of an evaluation, its circumstances included, as JSON, as a table and for a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swag_trainer.errors import SwagError, printable, shortened
from swag_trainer.evaluation.card_results import CardResults
from swag_trainer.evaluation.comparison import Comparison, ood_verdict, verdict
from swag_trainer.evaluation.earlier import from_format_1
from swag_trainer.metrics.bootstrap import Interval
from swag_trainer.metrics.calibration import ReliabilityBins
from swag_trainer.metrics.selective import RiskCoverage
from swag_trainer.posterior.regular_file import read_bytes
from swag_trainer.prediction.sampler import Sampling

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 2
_BINS = ("edges", "counts", "confidence", "accuracy")
_CURVE = ("coverage", "risk", "threshold")
_MOST_POINTS = 1000
_MAX_BYTES = 256 * 1024**2


@dataclass(frozen=True, eq=False)
class MethodMetrics:
    """What was measured of one method.

    Attributes:
        metrics: {metric: value with interval}. Metrics: "accuracy", "macro_f1", "nll" (nats), "ece" and "ece_quantile" (bins of equal
            width and between quantiles), "brier" (summed over classes), "aurc", "augrc", and where there are out-of-distribution (OOD) examples
            "auroc", "aupr" and "fpr95", each followed by "_entropy", "_one_minus_max", "_mutual_information", "_energy" or "_ood_score",
            the score by which examples are called OOD; of a method that has that score.
        num_draws: Draws per example.
        seconds_per_example: None where it was not measured.
        num_trainings: How many trainings the method needs; None where that is not known.
        fit_seconds: What it took to fit the method after them; None where nothing was fitted, or where it was not measured.
        bins: Reliability of the top label in bins of equal mass, for the diagram; in files of earlier versions of equal width.
        curve: Risk against coverage.
    """

    metrics: Mapping[str, Interval]
    num_draws: float
    seconds_per_example: float | None
    bins: ReliabilityBins
    curve: RiskCoverage
    num_trainings: int | None = None
    fit_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """The record of one evaluation; made by `swag_trainer.evaluation.measurement.measure`.

    The file of `to_json` is one JSON object with a key for every attribute below and ``"format": 2``. Of a method it holds "metrics"
    ({metric: {"value", "low", "high"}}), "num_draws", "seconds_per_example", "num_trainings", "fit_seconds", "reliability" ({"edges": [B + 1], "counts": [B],
    "confidence": [B], "accuracy": [B]}, null in an empty bin) and "risk_coverage" ({"coverage": [...], "risk": [...], "threshold":
    [...]}, at most 1000 points, the first and the last among them); of an uncertainty "in_distribution" ([N]) and "ood" ([M]). Files of
    format 1, of earlier versions, are still read.

    Attributes:
        dataset, split, revision: Of the in-distribution examples; None where not known.
        num_examples: N, how many of them.
        ood: Name of the OOD data; None where there was none.
        num_ood: M, how many examples of it.
        posterior: Identity of the posterior whose draws were averaged, see `swag_trainer.evaluation.identity`; None where there was none.
        sampling: How it was drawn from; None where that is not known.
        map_weights: "last" or "adapter": whose weights "MAP" has; None where not known.
        num_bins: Bins of the calibration errors.
        num_resamples: Resamples of the bootstrap.
        level: Of the intervals.
        seed: Of the resamples.
        methods: What was measured, by the name of the method.
        comparisons: Of the posterior's method with every other one, by the NLL, and with "MAP", by the detection of OOD examples, paired;
            [] in files of earlier versions.
        uncertainties: Of the posterior's method, in nats: {name: (in-distribution (N,), OOD (M,))}; {} without OOD examples.
        versions: Of the libraries that measured.
    """

    dataset: str
    split: str | None
    revision: str | None
    num_examples: int
    ood: str | None
    num_ood: int
    posterior: str | None
    sampling: Sampling | None
    map_weights: str | None
    num_bins: int
    num_resamples: int
    level: float
    seed: int
    methods: Mapping[str, MethodMetrics]
    comparisons: Sequence[Comparison] = ()
    uncertainties: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Mapping[str, Interval]]:
        """{method: {metric: value with interval}}."""
        return {name: method.metrics for name, method in self.methods.items()}

    @property
    def verdict(self) -> str | None:
        """The comparison with the strongest method that needs no posterior, as one sentence; None where there is none."""
        return verdict(self.comparisons)

    @property
    def ood_verdict(self) -> str | None:
        """The comparison with "MAP" at detecting OOD examples, as one sentence; None where there is none."""
        return ood_verdict(self.comparisons)

    def to_card(self) -> CardResults:
        """Return what a model card prints: all metrics with their circumstances.

        Raises:
            SwagError: How the posterior was drawn from is not recorded.
            ValueError: There is no split, or a name is a path of this machine.
        """
        if self.sampling is None:
            raise SwagError("A card states draws and seed, and this measurement has none: pass measure(..., sampling=...).")
        # A single pass has no mutual information to detect OOD examples by, so its metrics are fewer.
        measured = list(dict.fromkeys(metric for found in self.metrics.values() for metric in found))
        return CardResults(
            dataset=self.dataset,
            split=self.split,  # type: ignore[arg-type]  # refused there if it is None
            revision=self.revision,
            num_examples=self.num_examples,
            num_samples=self.sampling.num_samples,
            seed=self.sampling.seed,
            num_bins=self.num_bins,
            metrics={
                name: {metric: found[metric].value if metric in found else None for metric in measured}
                for name, found in self.metrics.items()
            },
            intervals={
                name: {metric: (interval.low, interval.high) for metric, interval in found.items()}
                for name, found in self.metrics.items()
            },
            interval_level=self.level,
            **{cost: self._known(cost) for cost in ("seconds_per_example", "num_trainings", "fit_seconds")},
            scale=self.sampling.scale,
            temperature=None if self.sampling.temperature == 1 else self.sampling.temperature,
            ood=self.ood,
            num_ood=self.num_ood or None,
            versions=self.versions,
            comparisons=self.comparisons,
        )

    def _known(self, cost: str) -> dict[str, Any]:
        """Return a cost of each method whose is known."""
        values = {name: getattr(method, cost) for name, method in self.methods.items()}
        return {name: value for name, value in values.items() if value is not None}

    def to_json(self) -> str:
        """Return the text of a results file; floats come back from it exactly."""
        record = {item.name: getattr(self, item.name) for item in fields(self)}
        record["sampling"] = None if self.sampling is None else asdict(self.sampling)
        record["methods"] = {name: _method_document(method) for name, method in self.methods.items()}
        record["comparisons"] = [asdict(comparison) for comparison in self.comparisons]
        record["uncertainties"] = {
            name: {"in_distribution": _listed(in_distribution), "ood": _listed(ood)}
            for name, (in_distribution, ood) in self.uncertainties.items()
        }
        return json.dumps({"format": FORMAT} | record, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Read what `to_json` returned, or a file of an earlier version. Keys that are not the record's are ignored.

        Raises:
            SwagError: The text is not valid JSON, or not such a record.
        """
        try:
            document = json.loads(text)
            if document["format"] == 1:
                document = from_format_1(document)
            elif document["format"] != FORMAT:
                raise SwagError(
                    f"The results have format {shortened(repr(document['format']))}, this version reads 1 and {FORMAT}. Evaluate again."
                )
            record = {item.name: document[item.name] for item in fields(cls) if item.name != "comparisons"}
            record["comparisons"] = [
                Comparison(**comparison | {"difference": Interval(**comparison["difference"])})
                for comparison in document.get("comparisons", [])
            ]
            record["sampling"] = None if record["sampling"] is None else Sampling(**record["sampling"])
            record["methods"] = {name: _method(method) for name, method in record["methods"].items()}
            record["uncertainties"] = {
                name: (_array(values["in_distribution"]), _array(values["ood"]))
                for name, values in record["uncertainties"].items()
            }
            return cls(**record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SwagError(
                f"These are not results of an evaluation: {type(error).__name__}: {printable(str(error)[:200])}"
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> Measurement:
        """Read a results file, as ``swag-trainer evaluate --output`` writes it.

        Raises:
            SwagError: There is none, or it is not such a file.
        """
        try:
            return cls.from_json(read_bytes(Path(path), max_bytes=_MAX_BYTES).decode())
        except (UnicodeDecodeError, SwagError) as error:
            raise SwagError(f"{str(path)!r} is not what 'swag-trainer evaluate --output' writes: {error}") from error

    def table(self) -> Table:
        """Return the metrics as tables for the terminal, one below the other, at most 80 columns wide; see `as_table`.

        Raises:
            ImportError: The rich library is not installed.
        """
        from swag_trainer.evaluation.table import as_table

        return as_table(self)


def _method_document(method: MethodMetrics) -> dict[str, Any]:
    places = np.linspace(0, len(method.curve.risk) - 1, min(len(method.curve.risk), _MOST_POINTS)).astype(int)
    return {
        "num_draws": method.num_draws,
        "seconds_per_example": method.seconds_per_example,
        "num_trainings": method.num_trainings,
        "fit_seconds": method.fit_seconds,
        "metrics": {metric: asdict(interval) for metric, interval in method.metrics.items()},
        "reliability": {item: _listed(getattr(method.bins, item)) for item in _BINS},
        "risk_coverage": {item: _listed(getattr(method.curve, item)[places]) for item in _CURVE},
    }


def _method(document: Mapping[str, Any]) -> MethodMetrics:
    return MethodMetrics(
        metrics={metric: Interval(**interval) for metric, interval in document["metrics"].items()},
        num_draws=document["num_draws"],
        seconds_per_example=document["seconds_per_example"],
        num_trainings=document.get("num_trainings"),  # files of earlier versions have none
        fit_seconds=document.get("fit_seconds"),
        bins=ReliabilityBins(**{item: _array(document["reliability"][item]) for item in _BINS}),
        curve=RiskCoverage(**{item: _array(document["risk_coverage"][item]) for item in _CURVE}),
    )


def _listed(values: np.ndarray) -> list[float | int | None]:
    return [None if value != value else value for value in np.asarray(values).tolist()]


def _array(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])
