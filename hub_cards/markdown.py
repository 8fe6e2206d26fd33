"""Untrusted text as Markdown that shows it letter for letter and does nothing else."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

_LONGEST_TEXT = 200
_LONGEST_DESCRIPTION = 2000
_MOST_ITEMS = 100
_JOINERS = "\u200c\u200d"  # invisible, but Persian, Hindi and many emoji are spelt with them
_HARMLESS = re.compile(r"[^\W_]+([ +%-][^\W_]+)*")


def plain_text(text: str, *, longest: int = _LONGEST_TEXT) -> str:
    """Return ``text`` on one line, at most 200 characters, without control, format and bidirectional characters.

    A lone surrogate, which no file can hold, becomes U+FFFD, and so does a text of which nothing is left.
    """
    kinds = ((character, unicodedata.category(character)) for character in " ".join(text[: 4 * longest].split()))
    kept = "".join(
        "\ufffd" if kind == "Cs" else character
        for character, kind in kinds
        if kind not in ("Cc", "Cf") or character in _JOINERS
    )
    return (kept if len(kept) <= longest else kept[: longest - 1] + "…") or "\ufffd"


def inline_markdown(value: Any) -> Markup:
    """Turn a value into Markdown that shows it and does nothing else, in running text as in a cell of a table.

    Plain words stay as they are; everything else goes into a code span, where no markup, no entity and no link is looked for. The two
    characters that would end the span or the cell stand between spans, as character references.
    """
    if isinstance(value, Markup):
        return value
    if not isinstance(value, str):
        return Markup(f"{value:.4g}" if isinstance(value, float) else str(value))
    return _inline(plain_text(value))


def description(text: str) -> Markup:
    """Do the same for the alternative text of a picture, which may be longer."""
    return _inline(plain_text(text, longest=_LONGEST_DESCRIPTION))


def listed(texts: Iterable[str]) -> Markup:
    """Do the same for each of them, with commas between and the hundred-first and later ones counted."""
    texts = list(texts)
    more = f" and {len(texts) - _MOST_ITEMS} more" if len(texts) > _MOST_ITEMS else ""
    return Markup(", ").join(inline_markdown(text) for text in texts[:_MOST_ITEMS]) + more


def _inline(text: str) -> Markup:
    if _HARMLESS.fullmatch(text):
        return Markup(text)
    pieces = re.split(r"([|`])", text)
    return Markup("".join(f"&#{ord(piece)};" if piece in ("|", "`") else f"`{piece}`" for piece in pieces if piece))
