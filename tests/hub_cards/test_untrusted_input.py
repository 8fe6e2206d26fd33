"""Whatever strangers call their data sets, labels, metrics and libraries: a card stays the card that it is."""

import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_card import HOSTILE, some_posterior, some_tuning, tokens

from hub_cards import CardResults, build_card, merge_card
from hub_cards.marks import find_marked

PIECES = [
    *HOSTILE,
    "<!-- swag_trainer card ends -->",
    "<!-- swag_trainer card begins (0123456789abcdef) -->",
    "\n<!-- swag_trainer card ends -->\n",
    "-->",
    "{% raw %}",
    "{#",
    "![x](y.png)",
    "]: http://x",
    "~~~",
    "<img src=x onerror=alert(1)>",
    "|",
    "`",
    "\\",
    "$",
    ": ",
    "- !!python/object:os.system",
    "&amp;",
    "\r",
    "\x85",
    "\u2028",
]
strangers = (
    st.lists(st.text(max_size=8) | st.sampled_from(PIECES), min_size=1, max_size=4)
    .map("".join)
    .filter(lambda text: text.strip())
)


def hostile_tuning(word):
    tuning = some_tuning(baselines={"SWA": 0.5})
    for name, value in {"dataset": word, "split": word, "revision": word, "baselines": {word: 0.5}}.items():
        object.__setattr__(tuning, name, value)  # past the checks of a record that is read from a file
    return tuning


def card_of(word):
    """A card in which every text that a stranger can choose is this word."""
    local = CardResults(
        dataset="user/data:c" + word,
        split=word,
        revision=word,
        num_examples=9,
        num_samples=3,
        seed=0,
        num_bins=15,
        metrics={"SWAG": {word: 0.5}, f"m{word}": {word: 0.5}},
        intervals={"SWAG": {word: (0.25, 0.75)}},
        interval_level=0.9,
        seconds_per_example={"SWAG": 0.25},
        ood="f" + word,
        num_ood=4,
        versions={word: word},
    )
    posterior = some_posterior(
        base_model=word,
        labels=[word],
        schedule=word,
        initialisation=word,
        acceptance=word,
        versions={word: word},
        diagnostics={word: 0.5},
    )
    object.__setattr__(posterior.record, "tuning", hostile_tuning(word))
    return build_card(posterior, local, repo_id="me/x", plots={"a.png": word})


def structure(card):
    """How a reader of Markdown takes the card apart; which words are code and which are not does not count."""
    return [
        token.type
        for token in tokens(card)
        if token.type not in ("text", "code_inline", "softbreak") and not token.type.endswith("_close")
    ]


HARMLESS = card_of("word one")


@settings(deadline=None, max_examples=60)
@given(strangers)
def test_no_stranger_s_text_changes_the_structure_of_a_card_or_of_its_metadata(word):
    # Red for: any value printed raw, a code span left, a template made from data, a mark forged, YAML put together from strings.
    card = card_of(word)
    written = str(card).encode().decode()
    assert structure(ModelCard(written)) == structure(HARMLESS)
    assert not any(token.type == "html_inline" for token in tokens(card))
    marks = [token.content.strip() for token in tokens(card) if token.type == "html_block"]
    assert len(marks) == 2 and all(mark.startswith("<!-- swag_trainer card ") for mark in marks)
    found = find_marked(card.text)
    assert (found.before, found.after) == ("\n# x\n\n", "\n")
    expected = yaml.safe_load(str(HARMLESS).split("\n---\n")[0])
    metadata = yaml.safe_load(written.split("\n---\n")[0])
    for document in (expected, metadata):
        for name in ("base_model", "base_model_relation", "datasets", "metrics"):
            document.pop(name, None)
        for result in document["model-index"][0]["results"]:
            result["dataset"] = {**result["dataset"], "name": "", "config": "", "split": "", "revision": ""}
            result["metrics"] = [{**metric, "name": "", "type": ""} for metric in result["metrics"]]
    assert metadata == expected
    assert merge_card(HARMLESS, written).text == HARMLESS.text  # the next card finds the whole of this one
