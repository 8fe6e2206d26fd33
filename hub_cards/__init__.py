"""Model cards with measured metrics, for posteriors made by swag_trainer.

Cards are written and published without matplotlib, which is imported with the first name of a plot.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import jinja2  # noqa: F401
    import markupsafe  # noqa: F401
    import yaml  # noqa: F401
except ImportError as error:
    raise ImportError(f"hub_cards needs the package {error.name!r}: pip install 'swag-trainer[cards]'") from error

from hub_cards.card import build_card
from hub_cards.merging import merge_card
from hub_cards.preserve import PreserveModelCardMixin
from hub_cards.publish import publish_card
from swag_trainer.evaluation.card_results import CardResults

if TYPE_CHECKING:
    from hub_cards.plots import reliability_diagram, risk_coverage_plot, trajectory_plot, uncertainty_histogram
    from hub_cards.predictive_plot import plot_predictive

_PLOTS = {
    "plot_predictive": "predictive_plot",
    "reliability_diagram": "plots",
    "risk_coverage_plot": "plots",
    "trajectory_plot": "plots",
    "uncertainty_histogram": "plots",
}

__all__ = [
    "CardResults",
    "PreserveModelCardMixin",
    "build_card",
    "merge_card",
    "plot_predictive",
    "publish_card",
    "reliability_diagram",
    "risk_coverage_plot",
    "trajectory_plot",
    "uncertainty_histogram",
]


def __getattr__(name: str) -> Any:
    if name not in _PLOTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"hub_cards.{_PLOTS[name]}"), name)
    except ImportError as error:
        raise ImportError(f"hub_cards.{name} needs the package 'matplotlib': pip install 'swag-trainer[cards]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLOTS})
