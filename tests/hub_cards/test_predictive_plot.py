import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from hub_cards import plot_predictive
from swag_trainer import Predictive


def some_predictive(events, classes=12):
    logits = 2 * torch.randn(5, events, classes, generator=torch.Generator().manual_seed(0))
    return Predictive.from_logits(logits, "softmax", keep_draws=True)


def test_one_event_shows_its_likeliest_classes_and_every_draw():
    # Red for: classes in the order of their numbers, draws of another class.
    predictive = some_predictive(1)
    figure = plot_predictive(predictive, title="$a$ text")
    (axes,) = figure.axes
    order = np.argsort(-predictive.probabilities[0])[:8]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [str(index) for index in order]
    bars = axes.patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], predictive.probabilities[0, order])
    drawn = [line for line in axes.lines if line.get_marker() == "|"]
    np.testing.assert_allclose([line.get_xdata() for line in drawn], predictive.draw_probabilities[:, 0, order].T)
    assert "Averaged probabilities" in figure.get_label()


def test_several_events_show_every_score_and_every_uncertainty():
    # Red for: events that are left out of the histogram or the scatter plot.
    predictive = some_predictive(30)
    histogram, scatter = plot_predictive(predictive).axes
    assert sum(bar.get_height() for bar in histogram.patches) == 30
    np.testing.assert_array_equal(scatter.lines[0].get_xdata(), predictive.entropy)
    with pytest.raises(ValueError, match="at least one event"):
        plot_predictive(predictive[:0])


def test_a_figure_is_shown_as_the_value_of_a_cell():
    # Red for: a figure that prints as <Figure size ...> unless pyplot was imported and %matplotlib called.
    figure = plot_predictive(some_predictive(3))
    assert isinstance(figure, Figure) and figure._repr_png_().startswith(b"\x89PNG")
