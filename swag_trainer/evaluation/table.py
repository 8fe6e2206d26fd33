"""Tables of a measurement for the terminal, at most 80 columns wide: a row for each method, the interval below each value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from swag_trainer.evaluation.comparison import NLL, Comparison
from swag_trainer.evaluation.names import DETECTION_METRICS, DETECTION_SCORES, METRIC_NAMES
from swag_trainer.metrics.bootstrap import Interval

if TYPE_CHECKING:
    from rich.table import Table

_FIRST = ("accuracy", "macro_f1", "nll", "ece", "ece_quantile")
_WIDTH = 80
_NAME_WIDTH, _VALUE_WIDTH = 12, 11  # of "temperature" and of "0.795-0.934"; longer names are broken, never cut


class Measured(Protocol):
    """What the tables show; `swag_trainer.evaluation.record.Measurement` has it, and describes it."""

    dataset: str
    split: str | None
    num_examples: int
    ood: str | None
    num_ood: int
    num_bins: int
    num_resamples: int
    level: float
    methods: Mapping[str, Any]
    comparisons: Sequence[Comparison]


def as_table(measurement: Measured) -> Table:
    """Return the metrics of every method, in blocks of at most five columns.

    Raises:
        ImportError: The rich library is not installed.
    """
    try:
        from rich.table import Table
    except ImportError as error:
        raise ImportError("The table needs the rich library: pip install rich, or use to_json().") from error
    methods = list(measurement.methods)
    metrics: dict[str, Mapping[str, Interval]] = {name: found.metrics for name, found in measurement.methods.items()}

    def cells(metric: str) -> list[str]:
        return [shown(metrics[method].get(metric)) for method in methods]

    measured = [metric for metric in METRIC_NAMES if any(metric in found for found in metrics.values())]
    first = {METRIC_NAMES[metric]: cells(metric) for metric in measured if metric in _FIRST}
    second = {METRIC_NAMES[metric]: cells(metric) for metric in measured if metric not in _FIRST}
    differences = {each.other: each for each in measurement.comparisons if each.metric == NLL}
    if differences:
        own = next(iter(differences.values())).method
        second[f"NLL minus that of {own}"] = [
            shown(differences[method].difference) if method in differences else "-" for method in methods
        ]
    where = measurement.dataset if measurement.split is None else f"{measurement.dataset}, {measurement.split}"
    grid = Table.grid()
    grid.add_column(max_width=_WIDTH)
    grid.add_row(_block(f"{measurement.num_examples} examples of {where}", methods, first))
    grid.add_row()
    grid.add_row(_block("", methods, second))
    grid.add_row()
    grid.add_row(_block("", methods, _costs(list(measurement.methods.values()))))
    for kind, name in DETECTION_METRICS.items():
        columns = {
            shown_score: cells(f"{kind}_{score}")
            for score, shown_score in DETECTION_SCORES.items()
            if any(f"{kind}_{score}" in found for found in metrics.values())
        }
        if columns:
            title = f"{name} of detecting {measurement.num_ood} OOD examples of {measurement.ood} by"
            grid.add_row()
            grid.add_row(_block(title, methods, columns))
    grid.add_row()
    grid.add_row(
        f"Below each value its {measurement.level:.0%} interval, of {measurement.num_resamples} resamples. ECE in {measurement.num_bins} bins: few "
        "examples alone make it larger than 0, and the interval is of the error at as many examples."
    )
    return grid


def shown(interval: Interval | None) -> str:
    """Return a value and its limits on the line below; "-" for None.

    >>> shown(Interval(0.5, 0.25, 0.75))
    '0.500\\n0.250-0.750'
    >>> shown(Interval(0.5, -0.25, 0.75))
    '0.500\\n-0.250 to 0.750'
    """
    if interval is None:
        return "-"
    between = "-" if interval.low >= 0 else " to "
    return f"{interval.value:.3f}\n{interval.low:.3f}{between}{interval.high:.3f}"


def _costs(methods: Sequence[Any]) -> dict[str, list[str]]:
    """Return the columns of what training, fitting and predicting cost; those of which nothing is known are left out."""

    def cells(cost: str, spelt: Callable[[Any], str]) -> list[str]:
        return ["-" if getattr(method, cost) is None else spelt(getattr(method, cost)) for method in methods]

    columns = {
        "trainings": cells("num_trainings", str),
        "seconds to fit": cells("fit_seconds", "{:.2g}".format),
        "ms each": cells("seconds_per_example", lambda seconds: f"{1000 * seconds:.3g}"),
        "draws": cells("num_draws", "{:g}".format),
    }
    return {name: values for name, values in columns.items() if name in ("ms each", "draws") or set(values) != {"-"}}


def _block(title: str, methods: Sequence[str], columns: dict[str, list[str]]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(title) or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("method", overflow="fold", width=_NAME_WIDTH)
    for name, values in columns.items():
        longest = max(len(line) for value in values for line in value.splitlines())
        table.add_column(escape(name), justify="right", overflow="fold", max_width=max(longest, _VALUE_WIDTH))
    for method, *row in zip(methods, *columns.values(), strict=True):
        table.add_row(escape(method), *row)
    return table
