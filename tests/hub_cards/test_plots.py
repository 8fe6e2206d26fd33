import io
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_card import some_posterior

from hub_cards import reliability_diagram, risk_coverage_plot, trajectory_plot, uncertainty_histogram
from swag_trainer import SwagError
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


def test_confidence_intervals_of_the_filled_bins_are_drawn_where_bins_have_them():
    # Red for: low and high mixed up, intervals of empty bins, intervals asked of bins that have none.
    bins = some_bins()
    bins.accuracy_low, bins.accuracy_high = np.array([0, 0.2, 0, 0.6]), np.array([1, 0.8, 1, 0.95])
    axes = reliability_diagram({"SWAG": bins}).axes[0]
    assert [segment.tolist() for segment in axes.collections[0].get_segments()] == [
        [[0.4, 0.2], [0.4, 0.8]],
        [[0.9, 0.6], [0.9, 0.95]],
    ]
    assert not reliability_diagram({"SWAG": some_bins()}).axes[0].collections


def test_every_figure_says_in_words_what_it_shows():
    # Red for: averages over bins in place of examples, the first end of a curve in place of the last, a figure without words.
    assert reliability_diagram({"SWAG": some_bins()}).get_label() == (
        "Reliability diagram, accuracy against confidence. SWAG: mean confidence 0.713, accuracy 0.625, N = 8."
    )
    assert risk_coverage_plot({"SWAG": some_curve()}).get_label() == (
        "Risk-coverage curve, the fraction of wrong predictions. SWAG: 0.250 at coverage 1.00, 0.000 at 0.50."
    )
    assert uncertainty_histogram(np.array([0.1, 0.2, 0.3]), np.array([0.5]), name="mutual information").get_label() == (
        "Histogram of the mutual information in nats. in distribution, N = 3: median 0.2, 95th percentile 0.29; "
        "out of distribution, N = 1: median 0.5, 95th percentile 0.5."
    )
    assert trajectory_plot(travelled()).get_label() == (
        "Trajectory of 4 snapshots, from step 10 to 40. Distance from the mean so far: 3 at the second snapshot, 1 at the last, 3 at "
        "most; learning rate from 0.002 to 0.001; drift 0.20, effective rank 2.50."
    )


def some_curve():
    return SimpleNamespace(coverage=np.array([0.25, 0.5, 0.75, 1.0]), risk=np.array([0.0, 0.0, 1 / 3, 0.25]))


def travelled(**facts):
    record = {
        "steps": [10, 20, 30, 40],
        "learning_rates": [0.002, None, 0.002, 0.001],
        "deviation_norms": [0.0, 3.0, 2.0, 1.0],
        "diagnostics": {"effective_rank": 2.5, "drift": 0.2},
    }
    return some_posterior(**record | facts)


def test_each_risk_coverage_line_holds_the_curve_of_its_method():
    # Red for: axes swapped, or one method's curve under another's name.
    better = SimpleNamespace(coverage=[0.5, 1.0], risk=[0.0, 0.1])
    lines = {line.get_label(): line for line in risk_coverage_plot({"MAP": some_curve(), "SWAG": better}).axes[0].lines}
    np.testing.assert_array_equal(lines["MAP"].get_xydata(), np.stack([some_curve().coverage, some_curve().risk], axis=1))
    assert lines["SWAG"].get_xydata().tolist() == [[0.5, 0.0], [1.0, 0.1]]
    with pytest.raises(ValueError, match="at least one method"):
        risk_coverage_plot({})


def test_the_histograms_share_their_bins_and_each_adds_up_to_all_of_its_examples():
    # Red for: counts, which hide the smaller group; bins of each group's own; the last example outside the last bin.
    axes = uncertainty_histogram(np.linspace(0, 0.3, 900), np.linspace(0.2, 0.69, 100)).axes[0]
    outlines = {patch.get_label(): patch.get_data() for patch in axes.patches if patch.get_label()}
    assert list(outlines) == ["in distribution (N = 900)", "out of distribution (N = 100)"]
    inside, ood = outlines.values()
    np.testing.assert_array_equal(inside.edges, ood.edges)
    assert (inside.values.sum(), ood.values.sum()) == (pytest.approx(1), pytest.approx(1))
    assert inside.values[-1] == 0 and ood.values[0] == 0
    assert [line.get_xdata()[0] for line in axes.lines] == [pytest.approx(0.15), pytest.approx(0.445)]


@pytest.mark.parametrize("values", [[], [[0.1]], [0.1, np.nan], [np.inf]])
def test_an_uncertainty_that_is_not_one_number_for_each_example_is_refused(values):
    # Red for: an empty histogram, or one that leaves examples out in silence.
    with pytest.raises(ValueError, match=r"uncertainty_histogram\(ood=.*one finite number"):
        uncertainty_histogram(np.array([0.1]), np.array(values))


def test_one_value_for_all_is_a_histogram_too():
    # Red for: bins of width zero where every draw agrees about everything.
    assert uncertainty_histogram(np.zeros(3), np.zeros(2)).axes[0].patches


def test_the_trajectory_shows_every_snapshot_after_the_first_and_every_rate_on_record():
    # Red for: steps and lengths shifted by one, the first snapshot's distance of zero to itself, a rate that is not on record.
    lengths, rates = (axes.lines[0].get_xydata().tolist() for axes in trajectory_plot(travelled()).axes)
    assert lengths == [[20, 3], [30, 2], [40, 1]]
    assert rates == [[10, 0.002], [30, 0.002], [40, 0.001]]
    assert "drift 0.20, effective rank 2.50" in [text.get_text() for text in trajectory_plot(travelled()).axes[0].texts]
    assert len(trajectory_plot(travelled(learning_rates=[None] * 4, diagnostics={})).axes) == 1


def test_a_posterior_without_a_record_of_its_snapshots_is_refused_a_picture_of_them():
    # Red for: an empty plot for a posterior that was put together from saved adapters.
    for facts in ({"steps": [], "deviation_norms": [], "learning_rates": []}, {"deviation_norms": [1.0]}, {"steps": [10]}):
        with pytest.raises(SwagError, match="at least two snapshots"):
            trajectory_plot(travelled(**facts))


def test_a_real_run_has_a_trajectory(trained):
    # Red for: facts of the record that are spelt in another way than the plot's.
    posterior = trained[1].posterior
    lengths = trajectory_plot(posterior).axes[0].lines[0].get_xydata()
    assert lengths[:, 0].tolist() == posterior.collection.steps[1:]
    assert lengths[:, 1].tolist() == posterior.collection.deviation_norms[1:]


def test_strange_numbers_and_names_can_be_drawn_and_saved():
    # Red for: a picture that cannot be written because a name is half a formula or all counts are in one bin.
    lonely = replace(some_bins(), counts=np.array([0, 0, 0, 8]))
    for figure in (
        reliability_diagram({"$\\frac{$": lonely, "_hidden": some_bins()}, title="$_{"),
        risk_coverage_plot({"$x^$": some_curve()}, title="$_{"),
        uncertainty_histogram(np.zeros(3), np.ones(2), name="$", title="$_{"),
        trajectory_plot(travelled(deviation_norms=[0.0] * 4, learning_rates=[0.0] * 4), title="$_{"),
    ):
        figure.savefig(io.BytesIO(), format="png", dpi=50)
        assert figure.axes[0].get_title() in ("$_{", "")
