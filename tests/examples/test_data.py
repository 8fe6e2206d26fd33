"""The demo's own text: sizes, no duplicates, no leaks between the splits."""

import json
import re
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "examples" / "data" / "support.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
OUT_OF_SCOPE = "out_of_scope"


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def test_there_are_ten_intents_in_every_split_and_a_hundred_out_of_scope_questions():
    # Red for: a file that was cut, or a class without test rows.
    sizes = Counter((row["split"], row["intent"]) for row in ROWS)
    intents = {row["intent"] for row in ROWS} - {OUT_OF_SCOPE}
    assert len(intents) == 10
    assert sum(row["intent"] != OUT_OF_SCOPE for row in ROWS) >= 900
    for intent in intents:
        assert (sizes["train", intent], sizes["validation", intent], sizes["test", intent]) == (30, 20, 42)
    assert {split: count for (split, intent), count in sizes.items() if intent == OUT_OF_SCOPE} == {"test": 100}


def test_no_two_messages_are_alike_but_for_case_and_punctuation():
    # Red for: a message copied into another split or intent.
    twins = [text for text, count in Counter(" ".join(words(row["text"])) for row in ROWS).items() if count > 1]
    assert twins == []


def test_no_message_is_another_one_with_a_word_exchanged():
    # Red for: a template filled in twice. Long messages that share nine tenths of their letters are one message.
    long = [row for row in ROWS if len(words(row["text"])) >= 6]
    bags = [set(words(row["text"])) for row in long]
    pairs = [
        (long[one]["text"], long[two]["text"])
        for one in range(len(long))
        for two in range(one)
        if len(bags[one] & bags[two]) >= 0.7 * max(len(bags[one]), len(bags[two]))
        and SequenceMatcher(None, long[one]["text"].lower(), long[two]["text"].lower()).ratio() > 0.85
    ]
    assert pairs == []


def test_messages_are_short_and_hold_nobody_s_address():
    # Red for: essays, e-mail addresses, telephone numbers or links among the messages.
    for row in ROWS:
        assert 1 <= len(words(row["text"])) <= 40, row
        assert not re.search(r"@|https?:|www\.|\d{9,}", row["text"]), row


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_no_intent_gives_itself_away_by_its_first_words(split):
    # Red for: a template generator: one frame that opens a large part of an intent's messages.
    for intent in {row["intent"] for row in ROWS}:
        openings = Counter(" ".join(words(row["text"])[:3]) for row in ROWS if (row["split"], row["intent"]) == (split, intent))
        assert not openings or openings.most_common(1)[0][1] <= 3, openings.most_common(1)
