"""Style of the plots: colours, markers and line styles that are readable on light and dark pages and without colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# An opaque light card: a transparent picture would lose its dark text on a dark page, and a picture for each page needs HTML.
BACKGROUND = "#FFFFFF"
FOREGROUND = "#222222"
GREY = "#6B6B6B"

# Okabe and Ito's palette as far as it stands out from BACKGROUND by 3 : 1, which WCAG 2.2 asks of graphics; their reddish purple and
# the light colours do not, so Paul Tol's wine red takes the fifth place. Colour is never the only difference: see `line_style`.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")


class InlineFigure(Figure):
    """A figure that a notebook shows when it is the value of a cell, without pyplot and without a magic."""

    def _repr_png_(self) -> bytes:
        return as_png(self)


def line_style(index: int) -> dict[str, Any]:
    """Return colour, marker and line style of the method at this place; each of the three alone tells the first four apart."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
    }


def new_figure(heights: Sequence[float], *, size: tuple[float, float], sharex: bool = True) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of that size in inches and its axes, one below the other, whatever matplotlib's settings are."""
    figure = InlineFigure(figsize=size, layout="constrained", facecolor=BACKGROUND)
    axes = list(figure.subplots(len(heights), 1, sharex=sharex, height_ratios=heights, squeeze=False)[:, 0])
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


def legend(axes: Axes, **place: Any) -> None:
    """Add the legend, with the names letter for letter."""
    box = axes.legend(
        frameon=True, framealpha=0.85, facecolor=BACKGROUND, edgecolor="none", labelcolor=FOREGROUND, fontsize=10, **place
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def as_png(figure: Figure) -> bytes:
    """Return a PNG file of a figure, as cards link to it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
