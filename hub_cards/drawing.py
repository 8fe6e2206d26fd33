"""Style of the plots: colours, markers and line styles that are readable on light and dark pages and without colours."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swag_trainer.evaluation.colours import colour_of
from swag_trainer.evaluation.names import has_temperature, without_temperature

# An opaque light card: a transparent picture would lose its dark text on a dark page, and a picture for each page needs HTML.
BACKGROUND = "#FFFFFF"
FOREGROUND = "#222222"
GREY = "#6B6B6B"
# Colour is never the only difference: markers tell methods apart, and a dashed line has a temperature.
_MARKERS = {
    "SWAG": "o",
    "MultiSWAG": "o",
    "SWA": "^",
    "MultiSWA": "^",
    "MAP": "s",
    "MC dropout": "D",
    "Ensemble": "v",
    "TFB": "P",
    "Laplace (head)": "X",
    "Laplace (LoRA)": "<",
}
_OTHER_MARKERS = (">", "*", "d", "p", "h")


class InlineFigure(Figure):
    """A figure that a notebook shows when it is the value of a cell, without pyplot and without a magic."""

    def _repr_png_(self) -> bytes:
        return as_png(self)


def method_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return colour, marker and line style of each method, by its name; those of a name are the same in every plot.

    Methods of other names than the package's own share a colour and differ by their markers, in the order of their first appearance.
    """
    styles: dict[str, dict[str, Any]] = {}
    others: list[str] = []
    for method in methods:
        base = without_temperature(method)
        if base not in _MARKERS and base not in others:
            others.append(base)
        marker = _MARKERS.get(base) or _OTHER_MARKERS[others.index(base) % len(_OTHER_MARKERS)]
        styles[method] = {"color": colour_of(method), "marker": marker, "linestyle": "--" if has_temperature(method) else "-"}
    return styles


def new_figure(
    heights: Sequence[float], *, size: tuple[float, float], columns: int = 1, share_x: bool = True, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its axes, row by row, whatever matplotlib's settings are.

    Args:
        heights: Relative height of each row.
        size: Of the figure, in inches.
        columns: Axes in each row.
        share_x, share_y: Whether all axes have one range of x, and of y.
    """
    figure = InlineFigure(figsize=size, layout="constrained", facecolor=BACKGROUND)
    axes = list(
        figure.subplots(len(heights), columns, sharex=share_x, sharey=share_y, height_ratios=heights, squeeze=False).flat
    )
    for one in axes:
        one.set_facecolor(BACKGROUND)
        one.tick_params(colors=FOREGROUND, labelsize=10)
        one.grid(color=GREY, alpha=0.25, linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(FOREGROUND)
    return figure, axes


def label(axes: Axes, *, x: str | None = None, y: str | None = None, title: str | None = None) -> None:
    """Write what the axes show, letter for letter: matplotlib would take two dollar signs for mathematics."""
    for text, setter in ((x, axes.set_xlabel), (y, axes.set_ylabel), (title, axes.set_title)):
        if text is not None:
            setter(text, color=FOREGROUND, fontsize=11, parse_math=False)


def legend(figure: Figure, axes: Axes, *, columns: int = 3) -> None:
    """Add the legend of some axes below the plot, where it covers no data, with the names letter for letter."""
    box = figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        labelcolor=FOREGROUND,
        fontsize=10,
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def as_png(figure: Figure) -> bytes:
    """Return a PNG file of a figure, as cards link to it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
