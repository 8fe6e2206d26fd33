"""Marks of a generated card in a README.md: the two lines between which the text is replaced."""

from __future__ import annotations

import re
from dataclasses import dataclass

from swag_trainer import SwagError

# Whole lines: untrusted text that spells a mark is printed in a code span, with other characters on its line.
_BEGIN = re.compile(r"^<!-- swag_trainer card begins \(([0-9a-f]{16})\)[^\n]*-->[ \t]*\r?$", re.MULTILINE)
_END = re.compile(r"^<!-- swag_trainer card ends -->[ \t]*\r?$", re.MULTILINE)


@dataclass(frozen=True)
class MarkedText:
    """A text with one marked part.

    Attributes:
        before: What stands above the marked part.
        block: The marked part, marks included.
        after: What stands below it.
        identity: Of the posterior that the marked part describes.
    """

    before: str
    block: str
    after: str
    identity: str


def marked(body: str, identity: str) -> str:
    """Put the marks around a text, HTML comments that a page does not show."""
    return (
        f"<!-- swag_trainer card begins ({identity}). Publishing a card again replaces the text between here and the end mark, "
        f"and no other text. -->\n\n{body.strip()}\n\n<!-- swag_trainer card ends -->\n"
    )


def find_marked(text: str) -> MarkedText | None:
    """Return the parts of a text with marks, None for one without.

    Raises:
        SwagError: The marks are not one pair, so the card's text cannot be told from other text.
    """
    begins, ends = list(_BEGIN.finditer(text)), list(_END.finditer(text))
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0].end() > ends[0].start():
        raise SwagError(
            f"The README.md should hold one line '<!-- swag_trainer card begins ...' and, below it, one '<!-- swag_trainer card "
            f"ends -->'; it holds {len(begins)} and {len(ends)}. Remove what is left of an older card by hand."
        )
    start, end = begins[0].start(), ends[0].end()
    return MarkedText(text[:start], text[start:end], text[end:], begins[0][1])
