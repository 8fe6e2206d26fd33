"""A model card and its plots, from a posterior and a file of measured metrics."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard

from hub_cards import build_card
from hub_cards.identity import identity
from swag_trainer.errors import SwagError
from swag_trainer.evaluation.record import Measurement
from swag_trainer.posterior.base import WeightPosterior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_METHODS = 7  # as many line styles as the plots have
_TRAJECTORY = "trajectory.png"


def card_with_plots(
    posterior: WeightPosterior, results: Measurement | None, *, repo_id: str | None, given: Mapping[str, Any]
) -> tuple[ModelCard, dict[str, bytes]]:
    """Return the card, and its plots as PNG files by their paths beside README.md; without matplotlib there are none.

    Args:
        posterior: Whose card.
        results: Its metrics, if there are any.
        repo_id: "user/name" on the Hub.
        given: License, language and data sets, see `swag_trainer.cli.options.CardOptions`.

    Raises:
        SwagError: The metrics are of another posterior.
        ValueError: ``repo_id`` is not the id of a repository, or the Hub would refuse something that was given.
    """
    if results is not None and results.posterior != identity(posterior):
        raise SwagError(
            "The results were measured with another posterior than this one, before it was tuned, or by an earlier version. "
            "Measure again: swag-trainer evaluate."
        )
    figures: dict[str, Figure] = {}
    if importlib.util.find_spec("matplotlib") is None:
        sys.stderr.write("Without plots, which need the package 'matplotlib': pip install 'swag-trainer[cards]'\n")
    else:
        figures = _figures(posterior, results)
    card = build_card(posterior, None if results is None else results.to_card(), repo_id=repo_id, plots=figures, **given)
    return card, {path: _as_png(figure) for path, figure in figures.items()}


def _as_png(figure: Figure) -> bytes:
    from hub_cards.drawing import as_png

    return as_png(figure)


def plot_names(results: Measurement | None) -> list[str]:
    """Return the names of the files that `card_with_plots` may return."""
    measured = [] if results is None else ["reliability.png", "risk-coverage.png", *map(_histogram, results.uncertainties)]
    return [*measured, _TRAJECTORY]


def _histogram(uncertainty: str) -> str:
    return f"{uncertainty.replace('_', '-')}.png"


def _figures(posterior: WeightPosterior, results: Measurement | None) -> dict[str, Figure]:
    from hub_cards.plots import reliability_diagram, risk_coverage_plot, trajectory_plot, uncertainty_histogram

    figures: dict[str, Figure] = {}
    if results is not None:
        methods = dict(list(results.methods.items())[:_MOST_METHODS])
        data = f"{results.dataset}, {results.split}"
        figures["reliability.png"] = reliability_diagram({name: method.bins for name, method in methods.items()}, title=data)
        figures["risk-coverage.png"] = risk_coverage_plot({name: method.curve for name, method in methods.items()}, title=data)
        for name, (inside, ood) in results.uncertainties.items():
            title = f"{data} against {results.ood}"
            figures[_histogram(name)] = uncertainty_histogram(inside, ood, name=name.replace("_", " "), title=title)
    if "deviation_norms" not in posterior.metadata():  # a family without a trajectory
        return figures
    try:
        figures[_TRAJECTORY] = trajectory_plot(posterior)
    except SwagError as error:  # checkpoints without a record of their steps: the card does without the plot
        sys.stderr.write(f"Without a plot of the trajectory: {error}\n")
    return figures
