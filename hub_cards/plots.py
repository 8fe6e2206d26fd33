"""Figures for cards and reports: numbers in, a matplotlib Figure out. Nothing is measured here and no file is written.

What a figure shows is also said in words, with its numbers: ``figure.get_label()``, which `hub_cards.build_card` prints as its
alternative text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure

from hub_cards.drawing import COLOURS, FOREGROUND, GREY, label, legend, pen, sheet
from swag_trainer import SwagError, SwagPosterior

_BARS = 30


class Bins(Protocol):
    """What a reliability diagram needs; `swag_trainer.metrics.calibration.ReliabilityBins` has it.

    Where the bins also have ``accuracy_low`` and ``accuracy_high``, of the same shape, these are drawn as confidence intervals.

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


class Curve(Protocol):
    """What a risk-coverage plot needs.

    Attributes:
        coverage: Share of the examples that are answered, the surest first, rising. Shape (N,).
        risk: Share of wrong answers among these. Shape (N,).
    """

    coverage: np.ndarray
    risk: np.ndarray


def reliability_diagram(methods: Mapping[str, Bins], *, title: str | None = None) -> Figure:
    """Plot accuracy against confidence, a line for each method, and below it how many examples lie where.

    On the dotted diagonal probabilities mean what they say; below it a model is overconfident.

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
    figure, (curve, histogram) = sheet((3, 1), size=(6.5, 6.5))
    curve.plot([0, 1], [0, 1], linestyle=(0, (1, 2)), color=GREY, linewidth=1.5, label="perfectly calibrated")
    words = []
    for index, (name, bins) in enumerate(methods.items()):
        style = pen(index)
        filled = bins.counts > 0
        confidence, accuracy, counts = bins.confidence[filled], bins.accuracy[filled], bins.counts[filled]
        curve.plot(confidence, accuracy, label=name, linewidth=1.7, markersize=6, **style)
        if getattr(bins, "accuracy_low", None) is not None and getattr(bins, "accuracy_high", None) is not None:
            low, high = bins.accuracy_low[filled], bins.accuracy_high[filled]
            curve.vlines(confidence, low, high, color=style["color"], linestyle=style["linestyle"], linewidth=1.3)
        histogram.stairs(bins.counts, bins.edges, color=style["color"], linestyle=style["linestyle"], linewidth=1.5)
        words.append(
            f"{name}: mean confidence {np.average(confidence, weights=counts):.3f}, accuracy "
            f"{np.average(accuracy, weights=counts):.3f}, N = {int(counts.sum())}"
        )
    curve.set(ylim=(-0.02, 1.02), xlim=(0, 1))
    label(curve, y="share of correct answers", title=title)
    legend(curve, loc="best")
    histogram.set_yscale("symlog")
    histogram.set_ylim(bottom=0)
    label(histogram, x="probability of the predicted class", y="examples")
    figure.set_label(f"Reliability diagram, accuracy against confidence. {'; '.join(words)}.")
    return figure


def risk_coverage_plot(methods: Mapping[str, Curve], *, title: str | None = None) -> Figure:
    """Plot the share of wrong answers against the share of examples that are answered, a line for each method.

    Who may stay silent on the examples it is least sure of should be wrong more seldom; the lower the line the better.

    Args:
        methods: The curve of each method, by its name.
        title: Above the plot.

    Raises:
        ValueError: No method.
    """
    if not methods:
        raise ValueError("risk_coverage_plot() needs the curve of at least one method.")
    figure, (axes,) = sheet((1,), size=(6.5, 4.5))
    words = []
    for index, (name, curve) in enumerate(methods.items()):
        coverage, risk = np.asarray(curve.coverage), np.asarray(curve.risk)
        # Ten markers, not one for each example; shifted, so that those of methods on one line do not cover each other.
        axes.plot(coverage, risk, label=name, linewidth=1.7, markersize=6, markevery=(0.02 * index, 0.1), **pen(index))
        half = np.searchsorted(coverage, 0.5 * coverage[-1])
        words.append(f"{name}: {risk[-1]:.3f} at coverage {coverage[-1]:.2f}, {risk[half]:.3f} at {coverage[half]:.2f}")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(bottom=0)
    label(axes, x="share of examples answered, the surest first", y="share of wrong answers among them", title=title)
    legend(axes, loc="best")
    figure.set_label(f"Risk-coverage curve, the share of wrong answers. {'; '.join(words)}.")
    return figure


def uncertainty_histogram(known: np.ndarray, foreign: np.ndarray, *, name: str = "entropy", title: str | None = None) -> Figure:
    """Plot how an uncertainty is spread over known and over foreign (out-of-distribution) examples.

    The further to the right the foreign ones lie, the better the uncertainty tells them apart.

    Args:
        known: The uncertainty of each known example, in nats. Shape (N,).
        foreign: Of each foreign one. Shape (M,).
        name: What the uncertainty is called, such as "entropy" or "mutual information".
        title: Above the plot.

    Raises:
        ValueError: One of the two is empty, or holds something that is not finite.
    """
    groups = {"known": np.asarray(known, dtype=np.float64), "foreign": np.asarray(foreign, dtype=np.float64)}
    for group, values in groups.items():
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise ValueError(
                f"uncertainty_histogram({group}=...) is one finite number for each example, at least one, got shape {values.shape} "
                f"with {int(np.count_nonzero(~np.isfinite(values)))} that are not finite."
            )
    figure, (axes,) = sheet((1,), size=(6.5, 4.5))
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=_BARS)
    lines = ("-", "--")
    words = []
    for (group, values), colour, line in zip(groups.items(), COLOURS, lines, strict=False):
        shares = np.histogram(values, edges)[0] / len(values)
        axes.stairs(shares, edges, color=colour, label=f"{group} (N = {len(values)})", linestyle=line, linewidth=2)
        if group == "known":
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.25)
        axes.axvline(np.median(values), color=colour, linestyle=line, linewidth=1)
        words.append(
            f"{group}, N = {len(values)}: median {np.median(values):.3g}, 95th percentile {np.quantile(values, 0.95):.3g}"
        )
    label(axes, x=f"{name} in nats; the thin lines are the medians", y="share of the examples", title=title)
    legend(axes, loc="best")
    figure.set_label(f"Histogram of the {name} in nats. {'; '.join(words)}.")
    return figure


def trajectory_plot(posterior: SwagPosterior, *, title: str | None = None) -> Figure:
    """Plot the snapshots that the posterior was made of: how far each lay from the mean of those before, and its learning rate.

    A length that keeps falling, or a rate that falls along, says that training was still on its way while it was collected.

    Raises:
        SwagError: The posterior's file has no record of its snapshots.
    """
    record = posterior.collection
    # The first snapshot is its own mean.
    steps, norms = np.asarray(record.steps[1:], dtype=np.float64), np.asarray(record.deviation_norms[1:], dtype=np.float64)
    if not len(steps) or len(steps) != len(norms):
        raise SwagError(
            f"trajectory_plot() needs a step and a deviation for each of at least two snapshots, the posterior's record has "
            f"{len(record.steps)} steps and {len(record.deviation_norms)} deviations. It was made by an earlier version, or put "
            "together from saved adapters; collect again to have them."
        )
    rates = [(step, rate) for step, rate in zip(record.steps, record.learning_rates, strict=False) if rate is not None]
    figure, axes = sheet((2, 1) if rates else (1,), size=(6.5, 5) if rates else (6.5, 4))
    axes[0].plot(steps, norms, linewidth=1.5, markersize=4, **pen(0))
    axes[0].set_ylim(0, 1.1 * norms.max() or 1)
    label(axes[0], y="distance from the mean so far", title=title)
    facts = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in sorted(record.diagnostics.items()))
    if facts:
        axes[0].text(
            0.99, 0.02, facts, transform=axes[0].transAxes, ha="right", color=FOREGROUND, fontsize=10, parse_math=False
        )
    if rates:
        axes[1].plot(*zip(*rates, strict=True), drawstyle="steps-post", linewidth=1.5, color=COLOURS[1])
        axes[1].set_ylim(0, 1.15 * max(rate for _, rate in rates) or 1)
        label(axes[1], y="learning rate")
    label(axes[-1], x="optimizer step")
    figure.set_label(
        f"Trajectory of {len(record.steps)} snapshots, from step {record.steps[0]} to {record.steps[-1]}. Distance from the mean so "
        f"far: {norms[0]:.3g} at the second snapshot, {norms[-1]:.3g} at the last, {norms.max():.3g} at most"
        + (f"; learning rate from {rates[0][1]:.3g} to {rates[-1][1]:.3g}" if rates else "")
        + (f"; {facts}" if facts else "")
        + "."
    )
    return figure
