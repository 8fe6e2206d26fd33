"""Plots for model cards: reliability diagram, risk-coverage curve, uncertainty histogram, trajectory. Metrics in, a Figure out.

What a figure shows is also described in text, with its numbers: ``figure.get_label()``, which `hub_cards.build_card` prints as its
alternative text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure

from hub_cards.drawing import FOREGROUND, GREY, label, legend, method_styles, new_figure
from swag_trainer import SwagError, WeightPosterior
from swag_trainer.evaluation.colours import BLUE, COLOURS
from swag_trainer.evaluation.reliability import FEWEST, Bins, merged

_BARS = 30
_PANELS_IN_A_ROW = 3
_GROUPS = {"in_distribution": "in distribution", "ood": "out of distribution"}


class Curve(Protocol):
    """What a risk-coverage plot needs.

    Attributes:
        coverage: Fraction of the examples that are accepted, the most confident first, rising. Shape (N,).
        risk: Fraction of wrong predictions among these. Shape (N,).
    """

    coverage: np.ndarray
    risk: np.ndarray


def reliability_diagram(methods: Mapping[str, Bins], *, title: str | None = None) -> Figure:
    """Plot accuracy against confidence, a panel for each method, with 95 % confidence intervals of the accuracies.

    On the dotted diagonal a model is perfectly calibrated; below it it is overconfident. Bins of equal mass show most: see
    ``reliability_bins(..., scheme="quantile")``. Neighbouring bins are joined until each has ten examples; the intervals are Wilson's score
    intervals (Wilson 1927).

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
    drawn, styles = {name: merged(bins) for name, bins in methods.items()}, method_styles(methods)
    columns = min(len(methods), _PANELS_IN_A_ROW)
    rows = math.ceil(len(methods) / columns)
    size = (max(4.5, 2.7 * columns), 0.9 + 2.7 * rows)
    figure, axes = new_figure([1] * rows, size=size, columns=columns, share_y=True)
    confidences = np.concatenate([bins.confidence for bins in drawn.values()])
    lowest = math.floor(10 * confidences.min()) / 10 if len(confidences) else 0.0
    parts = []
    for panel, (name, bins) in zip(axes, drawn.items(), strict=False):
        panel.plot([0, 1], [0, 1], linestyle=(0, (1, 2)), color=GREY, linewidth=1.5, label="perfectly calibrated")
        style = styles[name]
        panel.vlines(bins.confidence, bins.accuracy_low, bins.accuracy_high, color=style["color"], linewidth=1.5, alpha=0.5)
        panel.plot(bins.confidence, bins.accuracy, linewidth=1.5, markersize=5, **style)
        label(panel, title=name)
        counts = methods[name].counts
        filled = counts > 0
        confidence, accuracy = (
            np.average(values[filled], weights=counts[filled]) for values in (methods[name].confidence, methods[name].accuracy)
        )
        parts.append(f"{name}: mean confidence {confidence:.3f}, accuracy {accuracy:.3f}, N = {int(counts.sum())}")
        if not len(bins.counts):
            panel.text(0.5, 0.5, f"fewer than {FEWEST} examples", transform=panel.transAxes, ha="center", color=FOREGROUND)
    for place, panel in enumerate(axes):
        if place >= len(methods):
            panel.set_axis_off()
        elif place + columns >= len(methods):  # nothing below it
            panel.tick_params(labelbottom=True)
            label(panel, x="predicted probability")
        if place % columns == 0:
            label(panel, y="fraction of correct predictions" if rows == 1 else "fraction correct")
    axes[0].set(ylim=(-0.03, 1.03), xlim=(lowest, 1.02))
    axes[0].vlines([], [], [], color=FOREGROUND, alpha=0.5, label="95 % interval of a bin's accuracy")
    legend(figure, axes[0], columns=1 if columns == 1 else 2)
    if title is not None:
        figure.suptitle(title, color=FOREGROUND, fontsize=11, parse_math=False)
    figure.set_label(f"Reliability diagram, accuracy against confidence. {'; '.join(parts)}.")
    return figure


def risk_coverage_plot(methods: Mapping[str, Curve], *, title: str | None = None) -> Figure:
    """Plot the fraction of wrong predictions (risk) against the fraction of accepted examples (coverage), a line for each method.

    A model that abstains where it is least confident should be wrong less often; the lower the line the better.

    Args:
        methods: The curve of each method, by its name.
        title: Above the plot.

    Raises:
        ValueError: No method.
    """
    if not methods:
        raise ValueError("risk_coverage_plot() needs the curve of at least one method.")
    figure, (axes,) = new_figure((1,), size=(6.5, 5))
    parts, styles = [], method_styles(methods)
    for index, (name, curve) in enumerate(methods.items()):
        coverage, risk = np.asarray(curve.coverage), np.asarray(curve.risk)
        # Ten markers, not one for each example; shifted, so that those of methods on one line do not cover each other.
        axes.plot(coverage, risk, label=name, linewidth=1.7, markersize=6, markevery=(0.02 * index, 0.1), **styles[name])
        half = np.searchsorted(coverage, 0.5 * coverage[-1])
        parts.append(f"{name}: {risk[-1]:.3f} at coverage {coverage[-1]:.2f}, {risk[half]:.3f} at {coverage[half]:.2f}")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(bottom=0)
    label(axes, x="coverage (fraction of examples accepted)", y="risk (fraction of wrong predictions)", title=title)
    legend(figure, axes, columns=2)
    figure.set_label(f"Risk-coverage curve, the fraction of wrong predictions. {'; '.join(parts)}.")
    return figure


def uncertainty_histogram(
    in_distribution: np.ndarray, ood: np.ndarray, *, name: str = "entropy", title: str | None = None
) -> Figure:
    """Plot the distribution of an uncertainty over in-distribution and over out-of-distribution (OOD) examples.

    The further to the right the OOD examples lie, the better the uncertainty detects them.

    Args:
        in_distribution: The uncertainty of each in-distribution example, in nats. Shape (N,).
        ood: Of each OOD example. Shape (M,).
        name: Name of the uncertainty, such as "entropy" or "mutual information".
        title: Above the plot.

    Raises:
        ValueError: One of the two is empty, or holds something that is not finite.
    """
    groups = {"in_distribution": np.asarray(in_distribution, dtype=np.float64), "ood": np.asarray(ood, dtype=np.float64)}
    for group, values in groups.items():
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise ValueError(
                f"uncertainty_histogram({group}=...) is one finite number for each example, at least one, got shape {values.shape} "
                f"with {int(np.count_nonzero(~np.isfinite(values)))} that are not finite."
            )
    figure, (axes,) = new_figure((1,), size=(6.5, 4.5))
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=_BARS)
    lines = ("-", "--")
    parts = []
    for (group, values), colour, line in zip(groups.items(), COLOURS, lines, strict=False):
        fractions, title_of = np.histogram(values, edges)[0] / len(values), _GROUPS[group]
        axes.stairs(fractions, edges, color=colour, label=f"{title_of} (N = {len(values)})", linestyle=line, linewidth=2)
        if group == "in_distribution":
            axes.stairs(fractions, edges, color=colour, fill=True, alpha=0.25)
        axes.axvline(np.median(values), color=colour, linestyle=line, linewidth=1)
        parts.append(
            f"{title_of}, N = {len(values)}: median {np.median(values):.3g}, 95th percentile {np.quantile(values, 0.95):.3g}"
        )
    label(axes, x=f"{name} in nats; the thin lines are the medians", y="fraction of the examples", title=title)
    legend(figure, axes, columns=2)
    figure.set_label(f"Histogram of the {name} in nats. {'; '.join(parts)}.")
    return figure


def trajectory_plot(posterior: WeightPosterior, *, title: str | None = None) -> Figure:
    """Plot the snapshots that the posterior was made of: how far each lay from the mean of those before, and its learning rate.

    A distance that keeps falling, or a rate that falls along, indicates that training had not converged while they were collected.

    Raises:
        SwagError: The posterior was not made of snapshots, or its file has no record of them.
    """
    record = posterior.summary()
    all_steps, all_norms, all_rates = (record.get(name, []) for name in ("steps", "deviation_norms", "learning_rates"))
    # The first snapshot is its own mean.
    steps, norms = np.asarray(all_steps[1:], dtype=np.float64), np.asarray(all_norms[1:], dtype=np.float64)
    if not len(steps) or len(steps) != len(norms):
        raise SwagError(
            f"trajectory_plot() needs a step and a deviation for each of at least two snapshots, the posterior's record has "
            f"{len(all_steps)} steps and {len(all_norms)} deviations. It is of a family without snapshots, made by an earlier version, or "
            "made of saved adapters; collect again to have them."
        )
    rates = [(step, rate) for step, rate in zip(all_steps, all_rates, strict=False) if rate is not None]
    figure, axes = new_figure((2, 1) if rates else (1,), size=(6.5, 5) if rates else (6.5, 4))
    axes[0].plot(steps, norms, linewidth=1.5, markersize=4, marker="o", color=BLUE)
    axes[0].set_ylim(0, 1.1 * norms.max() or 1)
    label(axes[0], y="distance from the mean so far", title=title)
    diagnostics = ", ".join(
        f"{name.replace('_', ' ')} {value:.2f}" for name, value in sorted(record.get("diagnostics", {}).items())
    )
    if rates:
        axes[1].plot(*zip(*rates, strict=True), drawstyle="steps-post", linewidth=1.5, color=COLOURS[1])
        axes[1].set_ylim(0, 1.15 * max(rate for _, rate in rates) or 1)
        label(axes[1], y="learning rate")
    label(axes[-1], x="optimizer step" + (f"\n{diagnostics}" if diagnostics else ""))
    figure.set_label(
        f"Trajectory of {len(all_steps)} snapshots, from step {all_steps[0]} to {all_steps[-1]}. Distance from the mean so "
        f"far: {norms[0]:.3g} at the second snapshot, {norms[-1]:.3g} at the last, {norms.max():.3g} at most"
        + (f"; learning rate from {rates[0][1]:.3g} to {rates[-1][1]:.3g}" if rates else "")
        + (f"; {diagnostics}" if diagnostics else "")
        + "."
    )
    return figure
