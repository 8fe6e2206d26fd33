import pytest

from hub_cards.marks import find_marked, marked
from swag_trainer import SwagError

BLOCK = marked("Our text.", "0123456789abcdef")


def test_a_marked_part_is_found_between_what_stands_around_it():
    # Red for: a line of a neighbour taken along, or the marks themselves lost.
    found = find_marked(f"above\n\n{BLOCK}\nbelow\n")
    assert (found.before, found.after, found.identity) == ("above\n\n", "\n\nbelow\n", "0123456789abcdef")
    assert found.before + found.block + found.after == f"above\n\n{BLOCK}\nbelow\n"


def test_marks_are_found_after_an_editor_has_changed_the_line_ends():
    # Red for: a card that is put in a second time because the Hub's editor wrote carriage returns.
    assert find_marked(f"above\n{BLOCK}".replace("\n", "\r\n")).identity == "0123456789abcdef"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "words\n",
        "Between `<!-- swag_trainer card begins (0123456789abcdef) -->` and `<!-- swag_trainer card ends -->`\n",
        "  <!-- swag_trainer card ends -->\n> <!-- swag_trainer card begins (0123456789abcdef) -->\n",
    ],
)
def test_a_text_that_only_speaks_of_marks_has_none(text):
    # Red for: a mark looked for anywhere in a line, as a label of that name would have it.
    assert find_marked(text) is None


@pytest.mark.parametrize(
    "text", [BLOCK + BLOCK, BLOCK.partition("\n")[2], BLOCK.partition("\n")[0], "".join(BLOCK.splitlines(True)[::-1])]
)
def test_marks_that_are_no_pair_are_refused(text):
    # Red for: everything between the first and the last mark taken for ours, words of people included.
    with pytest.raises(SwagError, match="should hold one line"):
        find_marked(text)
