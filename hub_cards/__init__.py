"""Model cards with measured metrics, for posteriors made by swag_trainer."""

from hub_cards.card import build_card
from hub_cards.merging import merge_card
from hub_cards.plots import reliability_diagram, risk_coverage_plot, trajectory_plot, uncertainty_histogram
from hub_cards.preserve import PreserveModelCardMixin
from hub_cards.publish import publish_card
from swag_trainer.evaluation.card_results import CardResults

__all__ = [
    "CardResults",
    "PreserveModelCardMixin",
    "build_card",
    "merge_card",
    "publish_card",
    "reliability_diagram",
    "risk_coverage_plot",
    "trajectory_plot",
    "uncertainty_histogram",
]
