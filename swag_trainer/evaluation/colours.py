"""Colour of each method, the same in every plot and on the page."""

from __future__ import annotations

from swag_trainer.evaluation.names import without_temperature

# Okabe and Ito's palette as far as it stands out from white by 3 : 1, which WCAG 2.2 asks of graphics; their reddish purple and the light
# colours do not, so Paul Tol's wine red takes the fifth place.
BLUE, ORANGE, GREEN, BLACK, WINE = COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#882255")
_METHODS = {"SWAG": ORANGE, "MultiSWAG": ORANGE, "SWA": GREEN, "MultiSWA": GREEN, "MAP": BLACK, "MC dropout": WINE}


def colour_of(method: str) -> str:
    """Return the colour of a method; with a temperature it keeps it, and methods of other names share one.

    >>> colour_of("MAP, temperature") == colour_of("MAP")
    True
    """
    return _METHODS.get(without_temperature(method), BLUE)
