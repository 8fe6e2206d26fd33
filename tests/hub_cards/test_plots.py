import io
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest
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
        counts=np.array([0, 12, 0, 20]),
        confidence=np.array([np.nan, 0.4, np.nan, confidence]),
        accuracy=np.array([np.nan, 0.5, np.nan, 0.7]),
    )


def panels(figure):
    """The points of each panel's method, by the panel's title."""
    shown = [axes for axes in figure.axes if axes.get_title()]
    assert all(axes.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]] for axes in shown)
    return {axes.get_title(): axes.lines[1].get_xydata() for axes in shown}


def test_each_panel_holds_confidence_and_accuracy_of_the_filled_bins_of_its_method():
    # Red for: axes swapped, empty bins drawn (as NaN, which breaks the line), one method's bins under another's name.
    found = panels(reliability_diagram({"MAP": some_bins(0.95), "SWAG": some_bins()}))
    assert list(found) == ["MAP", "SWAG"]
    np.testing.assert_allclose(found["MAP"], [[0.4, 0.5], [0.95, 0.7]])
    np.testing.assert_allclose(found["SWAG"], [[0.4, 0.5], [0.9, 0.7]])


def test_no_bin_of_fewer_than_ten_examples_is_drawn_and_none_of_its_examples_is_lost():
    # Red for: a point that is chance, small bins dropped, a mean that is not weighted by the counts, the interval of another count.
    counts = np.array([3, 4, 5, 30, 2, 0])
    bins = SomeBins(
        np.linspace(0, 1, 7), counts, np.array([0.1, 0.2, 0.4, 0.6, 0.8, np.nan]), np.array([0, 0.25, 1, 0.5, 1, np.nan])
    )
    figure = reliability_diagram({"SWAG": bins})
    joined = [(12, (0.3 + 0.8 + 2.0) / 12, 6 / 12), (32, (18 + 1.6) / 32, 17 / 32)]
    np.testing.assert_allclose(panels(figure)["SWAG"], [point for _, *point in joined])
    segments = figure.axes[0].collections[0].get_segments()
    for (count, confidence, accuracy), segment in zip(joined, segments, strict=True):
        wilson = binomtest(round(accuracy * count), count).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(segment, [[confidence, wilson.low], [confidence, wilson.high]])
    lonely = reliability_diagram({"SWAG": replace(bins, counts=np.array([0, 0, 4, 0, 5, 0]))})
    assert len(panels(lonely)["SWAG"]) == 0 and lonely.axes[0].texts[0].get_text() == "fewer than 10 examples"


def test_measured_bins_can_be_plotted_as_they_are():
    # Red for: a field of ReliabilityBins that is spelt in another way than the diagram's protocol.
    probabilities = np.repeat([[0.9, 0.1], [0.15, 0.85], [0.55, 0.45]], 10, axis=0)
    figure = reliability_diagram({"SWAG": reliability_bins(probabilities, np.zeros(30, int), num_bins=5)})
    np.testing.assert_allclose(panels(figure)["SWAG"], [[0.55, 1.0], [0.875, 0.5]])


def test_a_figure_has_a_panel_for_each_method_and_its_legend_below_all_of_them():
    # Red for: methods one over the other, a legend over data, a panel without numbers on its axis because the one below is empty.
    figure = reliability_diagram({f"method {index}": some_bins() for index in range(5)}, title="glue/sst2")
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    assert len(panels(figure)) == 5 and figure.get_suptitle() == "glue/sst2"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["perfectly calibrated", "95 % interval of a bin's accuracy"]
    curves = {"MAP": some_curve(), "SWAG": some_curve()}
    for each in (figure, risk_coverage_plot(curves), uncertainty_histogram(*np.ones((2, 3)))):
        each.savefig(io.BytesIO(), format="png", dpi=50)
        top = each.legends[0].get_window_extent().y1
        assert all(axes.get_window_extent().y0 >= top for axes in each.axes if axes.axison)
    with_numbers = [axes.get_title() for axes in figure.axes if axes.xaxis.get_tick_params()["labelbottom"] and axes.axison]
    assert with_numbers == ["method 2", "method 3", "method 4"]


def test_no_method_at_all_is_refused():
    # Red for: an empty diagram that looks like a result.
    with pytest.raises(ValueError, match="at least one method"):
        reliability_diagram({})


def test_every_figure_says_in_words_what_it_shows():
    # Red for: averages over bins in place of examples, the first end of a curve in place of the last, a figure without words.
    assert reliability_diagram({"SWAG": some_bins()}).get_label() == (
        "Reliability diagram, accuracy against confidence. SWAG: mean confidence 0.713, accuracy 0.625, N = 32."
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
    assert trajectory_plot(travelled()).axes[-1].get_xlabel() == "optimizer step\ndrift 0.20, effective rank 2.50"
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
        assert "$_{" in (figure.axes[0].get_title(), figure.get_suptitle())
