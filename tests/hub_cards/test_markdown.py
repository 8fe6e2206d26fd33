from markdown_it import MarkdownIt

from hub_cards.markdown import description, inline_markdown, listed


def shown(markdown):
    return "".join(child.content for child in MarkdownIt().parse(str(markdown))[1].children)


def test_words_stay_as_they_are_and_everything_else_is_shown_letter_for_letter():
    # Red for: code spans around plain words, or a character lost on the way.
    assert str(inline_markdown("macro F1")) == "macro F1"
    for text in ("a|b", "`", "a`b|c", "<b>", "x_y", "*", "\\|"):
        assert shown(inline_markdown(text)) == text


def test_a_description_may_be_longer_than_a_name_but_not_endless():
    # Red for: the words for a figure of five methods cut off, or a megabyte of them.
    assert shown(description("word " * 300)).startswith("word " * 299)
    assert len(description("x" * 10**6)) < 2100
    assert len(inline_markdown("x" * 10**6)) < 250


def test_long_lists_are_counted():
    # Red for: the hundredth item left out, or the rest counted wrongly.
    assert str(listed([f"l{i}" for i in range(103)])).endswith("l98, l99 and 3 more")
    assert str(listed([])) == ""


def test_line_ends_of_every_kind_become_spaces():
    # Red for: two words grown together, or a line end (U+2028, U+0085) that a reader of the file sees as one.
    assert shown(inline_markdown("a\r\nb\x85c\u2028d\u2029e\tf")) == "a b c d e f"
