"""Methods measured on the same rows: every figure with its interval, and what each said about each row."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from swag_trainer.errors import SwagError
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics.bootstrap import Interval, bootstrap_interval
from swag_trainer.metrics.calibration import expected_calibration_error
from swag_trainer.metrics.checks import checked
from swag_trainer.metrics.ood import aupr, auroc, fpr_at_tpr, uncertainty_scores
from swag_trainer.metrics.scores import accuracy, brier_score, macro_f1, negative_log_likelihood
from swag_trainer.metrics.selective import area_under_risk_coverage
from swag_trainer.posterior.atomic import write_bytes

if TYPE_CHECKING:
    from rich.table import Table

_OF_FOREIGN: dict[str, Callable[..., float]] = {"auroc": auroc, "aupr": aupr, "fpr95": fpr_at_tpr}


@dataclass(frozen=True, eq=False)
class Measurement:
    """What `measure` found, with its circumstances.

    Attributes:
        figures: {method: {metric: Interval}}. Metrics: "accuracy", "macro_f1", "nll" (nats), "ece" and "ece_mass" (bins of equal width
            and of equal mass), "brier" (summed over classes), "aurc", and of foreign rows "auroc", "aupr" and "fpr95", each followed by
            "_entropy", "_one_minus_max" or "_mutual_information", the score that rows are called foreign by.
        answers: What each method said.
        labels: True classes. Shape (N,).
        num_bins: Bins of the calibration errors.
        num_resamples: Resamples of the bootstrap.
        level: Of the intervals.
        seed: Of the resamples.
    """

    figures: Mapping[str, Mapping[str, Interval]]
    answers: Mapping[str, MethodPredictions]
    labels: np.ndarray
    num_bins: int
    num_resamples: int
    level: float
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Return figures and circumstances as plain dictionaries and numbers, for ``json.dumps``."""
        foreign = next(iter(self.answers.values())).foreign_probabilities
        return {
            "num_rows": len(self.labels),
            "num_foreign": 0 if foreign is None else len(foreign),
            "num_bins": self.num_bins,
            "num_resamples": self.num_resamples,
            "level": self.level,
            "seed": self.seed,
            "methods": {
                name: {
                    "num_draws": self.answers[name].num_draws,
                    "seconds_per_row": self.answers[name].seconds_per_row,
                    "figures": {metric: asdict(interval) for metric, interval in figures.items()},
                }
                for name, figures in self.figures.items()
            },
        }

    def table(self) -> Table:
        """Return the figures as a table for the terminal, a row for each metric and a column for each method.

        Raises:
            ImportError: The rich library is not installed.
        """
        try:
            from rich.markup import escape
            from rich.table import Table
        except ImportError as error:
            raise ImportError("The table needs the rich library: pip install rich, or use as_json().") from error
        table = Table(
            title=f"{len(self.labels)} rows, {self.level:.0%} intervals of {self.num_resamples} resamples, {self.num_bins} bins"
        )
        table.add_column("")
        for name in self.figures:
            table.add_column(escape(name), justify="right")
        metrics = dict.fromkeys(metric for figures in self.figures.values() for metric in figures)
        for metric in metrics:
            cells = [figures.get(metric) for figures in self.figures.values()]
            table.add_row(metric, *("-" if cell is None else escape(str(cell)) for cell in cells))
        times = [self.answers[name].seconds_per_row for name in self.figures]
        table.add_row("ms per row", *("-" if time is None else f"{1000 * time:.3g}" for time in times))
        table.add_row("draws", *(f"{self.answers[name].num_draws:g}" for name in self.figures))
        return table

    def rows_to_parquet(self, path: str | Path) -> None:
        """Write what each method said about each row, whole or not at all.

        Columns: method, row, is_foreign, label, prediction, correct, confidence, entropy (nats), mutual_information (nats),
        probabilities (a list). Foreign rows have no label and are neither right nor wrong; a single draw has no mutual information.

        Raises:
            ImportError: The pyarrow library is not installed.
            OSError: The file cannot be written.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError("A Parquet file needs the pyarrow library: pip install pyarrow.") from error
        parts = []
        for name, answers in self.answers.items():
            parts.append(_rows(name, answers.probabilities, answers.mutual_information, self.labels))
            if answers.foreign_probabilities is not None:
                parts.append(_rows(name, answers.foreign_probabilities, answers.foreign_mutual_information, None))
        table = pa.concat_tables(pa.table(part, schema=_row_schema(pa)) for part in parts)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_bytes(Path(path), buffer.getvalue())


def measure(
    methods: Mapping[str, MethodPredictions],
    labels: ArrayLike,
    *,
    num_bins: int = 15,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Measurement:
    """Measure methods on the same rows.

    Every method and metric sees the same resamples of the rows; known and foreign rows are resampled each among themselves.

    Args:
        methods: Answers of each method, by its name.
        labels: True classes of the known rows. Shape (N,).
        num_bins: Bins of the calibration errors.
        num_resamples: Resamples for each interval.
        level: Of the intervals, in (0, 1).
        seed: Of the resamples.

    Raises:
        SwagError: No method, or methods that answered other numbers of rows or classes.
        ValueError: Impossible labels, or a number out of range.
    """
    if not methods:
        raise SwagError("measure() needs the answers of at least one method.")
    _check_same_rows(methods)
    options: dict[str, Any] = {"level": level, "num_resamples": num_resamples, "seed": seed}
    figures = {}
    for name, answers in methods.items():
        probabilities, checked_labels = checked(answers.probabilities, labels)
        metrics = _of_known(num_bins)
        found = {
            metric: bootstrap_interval(function, probabilities, checked_labels, **options)
            for metric, function in metrics.items()
        }
        figures[name] = found | _foreign_figures(answers, options)
    return Measurement(figures, dict(methods), checked_labels, num_bins, num_resamples, level, seed)


def _of_known(num_bins: int) -> dict[str, Callable[..., float]]:
    def ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
        return expected_calibration_error(probabilities, labels, num_bins=num_bins)

    def ece_mass(probabilities: np.ndarray, labels: np.ndarray) -> float:
        return expected_calibration_error(probabilities, labels, num_bins=num_bins, scheme="quantile")

    def aurc(probabilities: np.ndarray, labels: np.ndarray) -> float:
        return area_under_risk_coverage(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)

    return {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "nll": negative_log_likelihood,
        "ece": ece,
        "ece_mass": ece_mass,
        "brier": brier_score,
        "aurc": aurc,
    }


def _foreign_figures(answers: MethodPredictions, options: Mapping[str, Any]) -> dict[str, Interval]:
    if answers.foreign_probabilities is None:
        return {}
    known = uncertainty_scores(answers.probabilities, answers.mutual_information)
    foreign = uncertainty_scores(answers.foreign_probabilities, answers.foreign_mutual_information)
    is_foreign = np.arange(len(answers.probabilities) + len(answers.foreign_probabilities)) >= len(answers.probabilities)
    figures = {}
    for score, values in known.items():
        scores = np.concatenate([values, foreign[score]])
        for metric, function in _OF_FOREIGN.items():

            def measured(drawn: np.ndarray, flags: np.ndarray, function: Callable[..., float] = function) -> float:
                return function(drawn[~flags], drawn[flags])

            figures[f"{metric}_{score}"] = bootstrap_interval(measured, scores, is_foreign, strata=is_foreign, **options)
    return figures


def _check_same_rows(methods: Mapping[str, MethodPredictions]) -> None:
    shapes = {
        name: (
            answers.probabilities.shape,
            None if answers.foreign_probabilities is None else len(answers.foreign_probabilities),
        )
        for name, answers in methods.items()
    }
    first, expected = next(iter(shapes.items()))
    for name, shape in shapes.items():
        if shape != expected:
            raise SwagError(
                f"Methods are measured on the same rows, but {first!r} answered {_in_words(expected)} and {name!r} {_in_words(shape)}."
            )


def _in_words(shape: tuple[tuple[int, ...], int | None]) -> str:
    (rows, classes), foreign = shape
    return f"{rows} rows of {classes} classes and {foreign or 'no'} foreign rows"


def _rows(name: str, probabilities: np.ndarray, information: np.ndarray | None, labels: np.ndarray | None) -> dict[str, Any]:
    predictions = probabilities.argmax(axis=1)
    count = len(probabilities)
    return {
        "method": [name] * count,
        "row": np.arange(count),
        "is_foreign": np.full(count, labels is None),
        "label": [None] * count if labels is None else labels,
        "prediction": predictions,
        "correct": [None] * count if labels is None else predictions == labels,
        "confidence": probabilities.max(axis=1),
        "entropy": uncertainty_scores(probabilities)["entropy"],
        "mutual_information": [None] * count if information is None else information,
        "probabilities": list(probabilities),
    }


def _row_schema(pa: Any) -> Any:
    return pa.schema(
        {
            "method": pa.string(),
            "row": pa.int64(),
            "is_foreign": pa.bool_(),
            "label": pa.int64(),
            "prediction": pa.int64(),
            "correct": pa.bool_(),
            "confidence": pa.float64(),
            "entropy": pa.float64(),
            "mutual_information": pa.float64(),
            "probabilities": pa.list_(pa.float64()),
        }
    )
