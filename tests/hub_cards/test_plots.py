from dataclasses import dataclass

import numpy as np
import pytest

from hub_cards import reliability_diagram
from swag_trainer.metrics.calibration import reliability_bins


@dataclass
class SomeBins:
    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def some_bins(confidence=0.9):
    return SomeBins(
        edges=np.array([0.0, 0.25, 0.5, 0.75, 1.0]),
        counts=np.array([0, 3, 0, 5]),
        confidence=np.array([np.nan, 0.4, np.nan, confidence]),
        accuracy=np.array([np.nan, 0.5, np.nan, 0.7]),
    )


def curves(figure):
    return {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}


def test_each_curve_holds_confidence_and_accuracy_of_the_filled_bins_of_its_method():
    # Red for: axes swapped, empty bins drawn (as NaN, which breaks the line), one method's bins under another's name.
    assert curves(reliability_diagram({"MAP": some_bins(0.95), "SWAG": some_bins()})) == {
        "perfectly calibrated": [[0, 0], [1, 1]],
        "MAP": [[0.4, 0.5], [0.95, 0.7]],
        "SWAG": [[0.4, 0.5], [0.9, 0.7]],
    }


def test_the_histogram_holds_the_counts_of_all_bins_between_their_edges():
    # Red for: empty bins left out here as well, which moves the others.
    figure = reliability_diagram({"MAP": some_bins()})
    stairs = figure.axes[1].patches[0].get_data()
    assert stairs.values.tolist() == [0, 3, 0, 5]
    assert stairs.edges.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_measured_bins_can_be_plotted_as_they_are():
    # Red for: a field of ReliabilityBins that is spelt in another way than the diagram's protocol.
    probabilities = np.array([[0.9, 0.1], [0.15, 0.85], [0.55, 0.45]])
    figure = reliability_diagram({"SWAG": reliability_bins(probabilities, np.array([0, 0, 0]), num_bins=5)})
    np.testing.assert_allclose(curves(figure)["SWAG"], [[0.55, 1.0], [0.875, 0.5]])


def test_the_legend_names_every_method_and_the_title_stands_above():
    # Red for: lines that cannot be told apart.
    figure = reliability_diagram({"MAP": some_bins(), "SWAG": some_bins()}, title="glue/sst2")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["perfectly calibrated", "MAP", "SWAG"]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 3
    assert figure.axes[0].get_title() == "glue/sst2"


def test_no_method_at_all_is_refused():
    # Red for: an empty diagram that looks like a result.
    with pytest.raises(ValueError, match="at least one method"):
        reliability_diagram({})
