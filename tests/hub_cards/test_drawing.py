import io
import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from hub_cards.drawing import BACKGROUND, FOREGROUND, GREY, label, legend, method_styles, new_figure
from swag_trainer.evaluation.colours import COLOURS, colour_of
from swag_trainer.evaluation.methods import METHODS

# Severity 1.0 of Machado, Oliveira and Fernandes 2009, "A physiologically-based model for simulation of color vision deficiency",
# on linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """Contrast ratio of WCAG 2.2."""
    light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


def lab(rgb):
    """CIELAB (D65) of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_contrast_of_black_and_white_is_the_one_that_the_standard_names():
    # Red for: an oracle that is itself wrong.
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.005)


def test_lines_stand_out_from_the_paper_by_3_to_1_and_text_by_4_5_to_1():
    # Red for: the orange, the light blue or the reddish purple of Okabe and Ito on white; pale grey text.
    assert min(contrast(colour, BACKGROUND) for colour in COLOURS) >= 3
    assert min(contrast(FOREGROUND, BACKGROUND), contrast(GREY, BACKGROUND)) >= 4.5


@pytest.mark.parametrize("kind", BLINDNESS)
def test_no_two_colours_look_alike_to_a_colour_blind_reader(kind):
    # Red for: a purple that protanopic readers take for blue (#AA4499: 8). A difference of 2.3 is just noticeable.
    seen = [lab(np.array(BLINDNESS[kind]) @ linear(colour)) for colour in COLOURS]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 15


def test_methods_are_told_apart_without_any_colour():
    # Red for: marker and line style that repeat together.
    styles = method_styles([*METHODS, "best MAP, temperature", "ensemble", "ensemble, temperature", "Laplace"]).values()
    assert len({(one["marker"], one["linestyle"]) for one in styles}) == len(styles)
    assert len(set(COLOURS)) == 5


def test_a_method_has_one_colour_and_one_marker_whatever_stands_beside_it():
    # Red for: styles by the place in the figure, which give SWAG the colour of MAP where MAP was left out.
    everything = method_styles(METHODS)
    assert {name: method_styles([name])[name] for name in METHODS} == everything
    assert [everything[name]["color"] for name in METHODS] == [colour_of(name) for name in METHODS]
    assert len({colour_of(name) for name in ("MAP", "SWA", "SWAG", "MC dropout", "ensemble")}) == 5


def test_a_figure_is_opaque_light_and_the_same_whatever_style_the_user_has_chosen():
    # Red for: a transparent background, on which dark text is lost on a dark page; or colours taken from rcParams.
    def picture():
        figure, (axes,) = new_figure((1,), size=(2, 2))
        axes.plot([0, 1], [0, 1], **method_styles(["SWAG"])["SWAG"])
        label(axes, x="x", y="y", title="title")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=50)
        buffer.seek(0)
        return imread(buffer, format="png")

    light = picture()
    assert (light[..., 3] == 1).all()
    assert (light[0, 0, :3] == 1).all()
    with matplotlib.rc_context({"figure.facecolor": "black", "axes.facecolor": "black", "text.color": "white"}):
        np.testing.assert_array_equal(picture(), light)


def test_dollar_signs_in_names_are_dollar_signs():
    # Red for: a method called "$x" and "y$" read as mathematics, or a broken formula that stops the drawing.
    figure, (axes,) = new_figure((1,), size=(2, 2))
    axes.plot([0, 1], [0, 1], label=r"$\frac{$")
    label(axes, x="$\\bad{$", y="$_$", title="$\\x$")
    legend(figure, axes)
    figure.savefig(io.BytesIO(), format="png")
    assert figure.legends[0].get_texts()[0].get_text() == r"$\frac{$"
