"""Figures for cards and reports: numbers in, a matplotlib Figure out. Nothing is measured here and no file is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers, on light and on dark ground.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")


class Bins(Protocol):
    """What a reliability diagram needs; `swag_trainer.metrics.calibration.ReliabilityBins` has it.

    Attributes:
        edges: Borders of the bins. Shape (B + 1,).
        counts: Examples in each bin. Shape (B,).
        confidence: Mean probability of the predicted class. Shape (B,).
        accuracy: Share of correct predictions. Shape (B,).
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability_diagram(methods: Mapping[str, Bins], *, title: str | None = None) -> Figure:
    """Plot accuracy against confidence, a line for each method, and below it how many examples lie where.

    On the dashed diagonal probabilities mean what they say; below it a model is overconfident.

    Args:
        methods: Bins of each method, by its name.
        title: Above the plot.

    Returns:
        The figure; ``figure.savefig("reliability.png")`` writes it.

    Raises:
        ValueError: No method.
    """
    if not methods:
        raise ValueError("reliability_diagram() needs the bins of at least one method.")
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    curve, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=1, label="perfectly calibrated")
    for index, (name, bins) in enumerate(methods.items()):
        style = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}
        filled = bins.counts > 0
        curve.plot(bins.confidence[filled], bins.accuracy[filled], label=name, linewidth=1.5, markersize=5, **style)
        histogram.stairs(bins.counts, bins.edges, color=style["color"], linewidth=1.5)
    curve.set(ylabel="share of correct answers", ylim=(-0.02, 1.02), xlim=(0, 1), title=title)
    curve.legend(loc="lower right", frameon=False)  # below the diagonal, where few curves get
    histogram.set(xlabel="probability of the predicted class", ylabel="examples", yscale="symlog")
    for axes in (curve, histogram):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
