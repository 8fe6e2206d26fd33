"""Predictions as rows, as text and as an HTML table: what a notebook shows of a `Predictive`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import pandas

# Here a `Predictive` or a `RegressionPredictive` is anything with their attributes: their module imports this one.
_SHOWN = 10
_UNCERTAINTIES = ("entropy", "mutual_information", "between_members", "ood_score")


class Events(ABC):
    """Predictions of N events, which are indexed and shown in a notebook."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def select(self, events: np.ndarray) -> Self:
        """Return some of the events, by their numbers or by a mask of shape (N,)."""

    @abstractmethod
    def _rows(self) -> list[dict[str, Any]]:
        """Return every event as a dictionary."""

    def __getitem__(self, events: Any) -> Any:
        """Return one event as a dictionary, or, by a slice, a mask or a list of numbers, some of them as an object of the same class."""
        some = np.arange(len(self))[events]
        return self.select(some[None])._rows()[0] if some.ndim == 0 else self.select(some)

    def _repr_html_(self) -> str:
        """The first events as a table, for notebooks."""
        return html_table(repr(self), self._rows())


def class_rows(predictive: Any) -> list[dict[str, Any]]:
    """Return the likeliest label of every event of a `Predictive`, its score and its uncertainty, as the pipelines name them."""
    best = predictive.probabilities.argmax(axis=1)
    labels = predictive.labels
    columns: dict[str, Sequence[Any]] = {
        "label": best.tolist() if labels is None else [labels[index] for index in best],
        "score": predictive.probabilities.max(axis=1).tolist(),
    }
    for name in _UNCERTAINTIES:
        values = getattr(predictive, name)
        if values is not None:
            columns[name] = values.tolist()
    return _rows(columns)


def regression_rows(predictive: Any) -> list[dict[str, Any]]:
    """Return mean and standard deviation of every event of a `RegressionPredictive`; lists of them where there are several outputs."""
    return _rows({name: _plain(getattr(predictive, name)) for name in ("mean", "std")})


def class_text(predictive: Any) -> str:
    """Return sizes and means, never arrays."""
    size, classes = predictive.probabilities.shape
    means = {
        "score": predictive.probabilities.max(axis=1),
        **{name: getattr(predictive, name) for name in _UNCERTAINTIES if getattr(predictive, name) is not None},
    }
    return f"Predictive({size} events, {classes} classes, {_draws(predictive)}; {_means(means)})"


def regression_text(predictive: Any) -> str:
    """Return sizes and means, never arrays."""
    size, outputs = predictive.mean.shape
    means = {"mean": predictive.mean, "std": predictive.std}
    return f"RegressionPredictive({size} events, {outputs} outputs, {_draws(predictive)}; {_means(means)})"


def html_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the first rows as a table under a title. Labels are untrusted text, and are escaped."""
    body = "".join(
        f"<tr><td>{number}</td>{''.join(f'<td>{escape(_text(value))}</td>' for value in row.values())}</tr>"
        for number, row in enumerate(rows[:_SHOWN])
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else {}))
    more = f"<p>and {len(rows) - _SHOWN} more</p>" if len(rows) > _SHOWN else ""
    return f"<p>{escape(title)}</p><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def as_frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return rows as a table of pandas.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() needs the package 'pandas': pip install pandas") from error
    return pandas.DataFrame(list(rows))


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _plain(values: np.ndarray) -> list[Any]:
    return (values[:, 0] if values.shape[1] == 1 else values).tolist()


def _draws(predictive: Any) -> str:
    fewest, most = int(predictive.num_draws.min(initial=2**31)), int(predictive.num_draws.max(initial=0))
    return f"{most} draws" if fewest >= most else f"{fewest} to {most} draws"


def _means(values: Mapping[str, np.ndarray]) -> str:
    return "means: " + ", ".join(f"{name} {value.mean():.3g}" for name, value in values.items() if value.size)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)
