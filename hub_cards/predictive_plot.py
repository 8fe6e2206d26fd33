"""Plot of a prediction: the likeliest classes of one event, or score and uncertainty of many."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from hub_cards.drawing import FOREGROUND, label, new_figure
from swag_trainer import Predictive
from swag_trainer.evaluation.colours import BLUE, colour_of

_CLASSES = 8
_BARS = 20
_COLOUR = colour_of("SWAG")  # of averaged draws, as in the plots that compare methods


def plot_predictive(predictive: Predictive, *, title: str | None = None) -> Figure:
    """Plot a prediction.

    Of one event: the averaged probabilities of the eight likeliest classes, with one standard deviation over the draws, and each draw's
    probability where the draws were kept. Of several: how the scores are distributed, and the entropy of each event against its mutual
    information.

    Args:
        predictive: What `MonteCarloPredictor.predict` returned.
        title: Above the plot.

    Raises:
        ValueError: There is no event.
    """
    if len(predictive) == 0:
        raise ValueError("plot_predictive() needs a prediction of at least one event.")
    return _one(predictive, title) if len(predictive) == 1 else _many(predictive, title)


def _one(predictive: Predictive, title: str | None) -> Figure:
    probabilities, spread = predictive.probabilities[0], predictive.std[0]
    order = np.argsort(-probabilities, kind="stable")[:_CLASSES]
    names = [str(index) if predictive.labels is None else predictive.labels[index] for index in order]
    figure, (axes,) = new_figure((1,), size=(6.5, 1.4 + 0.4 * len(order)))
    places = np.arange(len(order))[::-1]
    axes.barh(places, probabilities[order], xerr=spread[order], color=_COLOUR, ecolor=FOREGROUND, height=0.6, alpha=0.8)
    if predictive.draw_probabilities is not None:
        for place, index in zip(places, order, strict=True):
            draws = predictive.draw_probabilities[:, 0, index]
            axes.plot(draws, np.full(len(draws), place), linestyle="none", marker="|", markersize=9, color=BLUE)
    axes.set_yticks(places, [name if len(name) <= 30 else name[:14] + "…" + name[-15:] for name in names])
    for tick in axes.get_yticklabels():
        tick.set_parse_math(False)
    axes.set_xlim(0, 1)
    uncertainty = f"entropy {predictive.entropy[0]:.3f}, mutual information {predictive.mutual_information[0]:.3f} nats"
    marks = "" if predictive.draw_probabilities is None else " (marks)"
    label(axes, x=f"averaged probability ± one standard deviation over the draws{marks}\n{uncertainty}", title=title)
    described = ", ".join(f"{name} {probabilities[index]:.3f}" for name, index in zip(names, order, strict=True))
    figure.set_label(f"Averaged probabilities: {described}; {uncertainty}.")
    return figure


def _many(predictive: Predictive, title: str | None) -> Figure:
    scores = predictive.probabilities.max(axis=1)
    figure, (histogram, scatter) = new_figure((1, 1), size=(6.5, 6.5), share_x=False)
    histogram.hist(scores, bins=np.linspace(0, 1, _BARS + 1), color=_COLOUR, alpha=0.8)
    label(histogram, x="score (averaged probability of the likeliest class)", y="events", title=title)
    scatter.plot(
        predictive.entropy,
        predictive.mutual_information,
        linestyle="none",
        marker="o",
        markersize=4,
        alpha=0.5,
        color=_COLOUR,
    )
    scatter.set_xlim(left=0)
    scatter.set_ylim(bottom=0)
    label(scatter, x="entropy (total uncertainty, nats)", y="mutual information (nats)")
    figure.set_label(
        f"Predictions of {len(predictive)} events: median score {np.median(scores):.3f}, median entropy "
        f"{np.median(predictive.entropy):.3f} nats, median mutual information {np.median(predictive.mutual_information):.3f} nats."
    )
    return figure
