"""A card and its plots, from a posterior and a file of measured figures."""

from __future__ import annotations

import sys

from huggingface_hub import ModelCard
from matplotlib.figure import Figure

from hub_cards import build_card, reliability_diagram, risk_coverage_plot, trajectory_plot, uncertainty_histogram
from hub_cards.drawing import as_png
from hub_cards.identity import identity
from swag_trainer.cli.results import EvaluationFile
from swag_trainer.errors import SwagError
from swag_trainer.posterior.swag import SwagPosterior

_MOST_METHODS = 7  # that the pens of the plots tell apart


def card_with_plots(
    posterior: SwagPosterior, results: EvaluationFile | None, *, repo_id: str | None
) -> tuple[ModelCard, dict[str, bytes]]:
    """Return the card, and its plots as PNG files by their paths beside README.md.

    Raises:
        SwagError: The figures are of another posterior.
        ValueError: ``repo_id`` is no id of a repository.
    """
    if results is not None and results.posterior != identity(posterior):
        raise SwagError(
            "The results were measured with another posterior than this one, or before it was tuned. Measure again: swag-trainer "
            "evaluate."
        )
    figures = _figures(posterior, results)
    card = build_card(posterior, None if results is None else results.card, repo_id=repo_id, plots=figures)
    return card, {path: as_png(figure) for path, figure in figures.items()}


def _figures(posterior: SwagPosterior, results: EvaluationFile | None) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    if results is not None:
        methods = list(results.bins)[:_MOST_METHODS]
        data = f"{results.card.dataset}, {results.card.split}"
        figures["reliability.png"] = reliability_diagram({name: results.bins[name] for name in methods}, title=data)
        figures["risk-coverage.png"] = risk_coverage_plot({name: results.curves[name] for name in methods}, title=data)
        for name, (known, foreign) in results.uncertainties.items():
            title = f"{data} against {results.card.foreign}"
            path = f"{name.replace('_', '-')}.png"
            figures[path] = uncertainty_histogram(known, foreign, name=name.replace("_", " "), title=title)
    try:
        figures["trajectory.png"] = trajectory_plot(posterior)
    except SwagError as error:  # of checkpoints without a record of their steps: the card does without the plot
        sys.stderr.write(f"Without a plot of the trajectory: {error}\n")
    return figures
