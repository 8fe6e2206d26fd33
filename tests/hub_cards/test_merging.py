import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import RepoCard
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import some_results
from test_card import some_posterior, tokens

from hub_cards import build_card, merge_card
from hub_cards.marks import find_marked
from swag_trainer import SwagError

BY_HAND = """---
license: mit
language:
- en
tags:
- my-tag
- lora
datasets:
- me/reviews
library_name: transformers
base_model: me/other-base
thumbnail: picture.png
model-index:
- name: mine
  results:
  - task:
      type: text-classification
    dataset:
      name: mine
      type: mine
    metrics:
    - type: f1
      value: 0.5
---
# My title

My words.
"""

TRAINER = """---
library_name: peft
base_model: /home/alice/base
tags:
- base_model:adapter:/home/alice/base
- lora
- transformers
model-index:
- name: x
  results: []
---

<!-- This model card has been generated automatically according to the information the Trainer had access to. You
should probably proofread and complete it, then remove this comment. -->

# x

This model is a fine-tuned version of [/home/alice/base](https://huggingface.co//home/alice/base) on an unknown dataset.
It achieves the following results on the evaluation set:
- Loss: 1.0986

## Model description

More information needed

## Intended uses & limitations

More information needed

## Training and evaluation data

More information needed

## Training procedure

### Training hyperparameters

- learning_rate: 0.01
"""


def some_card(**changes):
    return build_card(some_posterior(), some_results(**changes), repo_id="me/x")


def figures(card):
    """{(data set, metric): value} of the metadata."""
    return {
        (entry.dataset_name, entry.metric_name or entry.metric_type): entry.metric_value for entry in card.data.eval_results
    }


def test_what_a_person_wrote_around_a_card_and_into_its_metadata_survives_the_next_one():
    # Red for: ours written over theirs, a key dropped, their figures lost with our old ones.
    first = merge_card(some_card(), BY_HAND)
    edited = (
        str(first).replace("My words.", "My better words.").replace("license: mit", "license: apache-2.0") + "\nA last word.\n"
    )
    second = merge_card(some_card(metrics={"SWAG": {"accuracy": 0.5}}), edited)
    data = second.data.to_dict()
    assert (data["license"], data["language"], data["datasets"]) == ("apache-2.0", ["en"], ["me/reviews"])
    assert data["thumbnail"] == "picture.png"
    assert data["tags"] == ["swag-lora", "lora", "uncertainty", "my-tag"]
    assert (data["library_name"], data["base_model"]) == ("peft", "FacebookAI/roberta-base")
    assert figures(second) == {("mine", "f1"): 0.5, ("glue/sst2", "accuracy"): 0.5}
    assert data["model-index"][0]["name"] == "mine"
    assert second.text.startswith("# My title\n\nMy better words.\n\n<!-- swag_trainer card begins")
    assert second.text.endswith("A last word.\n")
    assert "0.925" not in str(second) and "| SWAG | 0.5 |" in str(second)


def test_figures_that_are_no_longer_measured_leave_the_metadata():
    # Red for: old figures that stay because the new card has none to put in their place.
    card = merge_card(build_card(some_posterior(), repo_id="me/x"), str(merge_card(some_card(), BY_HAND)))
    assert figures(card) == {("mine", "f1"): 0.5}
    assert "model-index" not in merge_card(build_card(some_posterior()), str(some_card())).data.to_dict()


def test_figures_of_people_on_the_very_same_data_are_told_from_ours():
    # Red for: entries looked at whole; the Hub client groups all metrics of one data set into one entry.
    theirs = yaml.safe_load(str(some_card()).split("---\n")[1])
    theirs["model-index"][0]["results"][0]["metrics"].append({"type": "f1", "value": 0.25, "name": "theirs"})
    existing = f"---\n{yaml.dump(theirs)}---\n{some_card().text}"
    once = merge_card(some_card(metrics={"SWAG": {"NLL": 0.1}}), existing)
    twice = merge_card(some_card(metrics={"SWAG": {"NLL": 0.1}}), once)
    assert figures(once) == {("glue/sst2", "theirs"): 0.25, ("glue/sst2", "NLL"): 0.1}
    assert str(twice) == str(once)


def test_the_empty_sections_of_the_trainer_give_way_and_what_it_recorded_stays():
    # Red for: a card under three times "More information needed", hyperparameters lost, a path of somebody's disk passed on.
    card = merge_card(some_card(), TRAINER)
    assert "More information needed" not in card.text and "generated automatically" not in card.text
    assert "alice" not in str(card)
    text = card.text
    order = [
        "# x\n",
        "- Loss: 1.0986",
        "swag_trainer card begins",
        "## How to use it",
        "swag_trainer card ends",
        "- learning_rate: 0.01",
    ]
    assert [text.index(one) for one in order] == sorted(text.index(one) for one in order)
    assert card.data.tags == ["swag-lora", "lora", "uncertainty", "transformers"]
    assert figures(card) == figures(some_card())
    assert [token.content for token, before in zip(tokens(card)[1:], tokens(card), strict=False) if before.tag == "h1"][
        0
    ] == "x"


def test_a_folder_of_the_trainer_is_no_base_model_even_where_ours_is_unknown():
    # Red for: base_model: /home/alice/base left on the Hub because our card has none to put in its place.
    card = merge_card(build_card(some_posterior(base_model="/home/bob/base")), TRAINER)
    assert not {"base_model", "base_model_relation"} & set(card.data.to_dict())
    named = merge_card(build_card(some_posterior(base_model="/home/bob/base")), BY_HAND)
    assert named.data.base_model == "me/other-base"


def test_sections_that_a_person_filled_stay_although_the_trainers_comment_was_forgotten():
    # Red for: everything under a known heading thrown away, or text that goes on after the placeholder.
    edited = TRAINER.replace(
        "## Model description\n\nMore information needed", "## Model description\n\nIt reads reviews."
    ).replace(
        "## Training and evaluation data\n\nMore information needed",
        "## Training and evaluation data\n\nMore information needed: ask Bob.",
    )
    text = merge_card(some_card(), edited).text
    assert "It reads reviews." in text
    assert "## Training and evaluation data\n\nMore information needed: ask Bob." in text
    assert "## Intended uses & limitations" not in text


def test_placeholders_in_a_readme_without_the_trainers_comment_are_somebodys_words():
    # Red for: text dropped that is not certainly generated.
    proofread = TRAINER.partition("-->")[0].partition("<!--")[0] + TRAINER.partition("-->")[2]
    assert merge_card(some_card(), proofread).text.count("More information needed") == 3


@pytest.mark.parametrize(
    "description",
    [
        None,
        "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been automatically generated.",
    ],
)
@pytest.mark.parametrize("end", ["", "\n### Framework versions\n\n- PEFT 0.21.2"])
def test_the_blank_form_of_the_hub_client_gives_way_as_a_whole(description, end):
    # Red for: two hundred lines of "[More Information Needed]" above the card.
    blank = str(ModelCard.from_template(ModelCardData(license="mit"), model_description=description)) + end
    # The metadata is not part of the form's text, so a template that only names a license there is still blank.
    blank = blank.replace("- **License:** mit", "- **License:** [More Information Needed]")
    card = merge_card(some_card(), blank)
    assert card.data.license == "mit"
    assert card.text.strip() == some_card().text.strip()
    filled = blank.replace("- **Developed by:** [More Information Needed]", "- **Developed by:** Bob")
    assert "Bob" in merge_card(some_card(), filled).text


def test_without_a_readme_the_card_is_as_it_was_built_and_a_card_of_somebody_replaces_everything():
    # Red for: None read as the text "None", or our marks forced upon a card that has none.
    assert merge_card(some_card(), None).content == some_card().content
    whole = ModelCard("---\nlicense: mit\n---\n# Mine\n")
    assert merge_card(whole, BY_HAND) is whole
    assert merge_card(some_card(), "").text.strip() == some_card().text.strip()


@pytest.mark.parametrize(
    "existing",
    [
        "---\nlicense: [mit\n---\n",
        "---\n- a list\n---\n",
        "---\ntrue: x\n---\n",
        "---\ntags: 5\n---\n",
    ],
)
def test_metadata_that_cannot_be_read_is_refused_instead_of_replaced(existing):
    # Red for: a KeyError or TypeError of our own, or the unreadable metadata gone without a word.
    with pytest.raises(SwagError, match="metadata.*cannot be read"):
        merge_card(some_card(), existing)


RESULT = (
    "  - task: {type: text-classification}\n    dataset: {name: theirs, type: theirs}\n    metrics: [{type: f1, value: 0.5}]\n"
)


@pytest.mark.parametrize(
    ("index", "problem", "kept"),
    [
        ("model-index: soon\n", "'soon' has no results", False),
        ("model-index:\n- name: x\n", "has no results", False),
        ("model-index:\n- x\n", "'x' has no results", False),
        ("model-index:\n- name: x\n  results:\n  - metrics:\n    - type: f1\n" + RESULT, "KeyError: 'task'", True),
        (
            "model-index:\n- name: x\n  results:\n  - task: {type: t}\n    metrics: [{type: f1, value: 1}]\n",
            "KeyError: 'dataset'",
            False,
        ),
        ("model-index:\n- results:\n" + RESULT + "  - metrics: [f1]\n", "KeyError: 'task'", True),
    ],
)
def test_a_model_index_of_other_tools_that_no_client_can_read_does_not_block_a_push(index, problem, kept):
    # Red for: the bare key 'results' as the reason for a push that ends, readable entries lost with the others, a card that the client
    # cannot load; or entries that go without a word.
    with pytest.warns(UserWarning, match="cannot read; they are left out") as warned:
        card = merge_card(some_card(), f"---\nlicense: mit\n{index}---\nTheirs.\n")
    assert problem in str(warned[0].message)
    loaded = ModelCard(str(card))
    assert loaded.data.license == "mit" and loaded.text.lstrip().startswith("Theirs.")
    assert figures(loaded) == ({("theirs", "f1"): 0.5} if kept else {}) | figures(some_card())


def test_data_sets_and_metrics_of_others_are_joined_with_ours():
    # Red for: a list of somebody's that the next card replaces, or names twice.
    theirs = "---\nmetrics: [accuracy, wer]\ndatasets: me/reviews\n---\n"
    card = merge_card(build_card(some_posterior(), some_results(), datasets=["me/more", "me/reviews"]), theirs)
    assert (card.data.metrics, card.data.datasets) == (["accuracy", "wer"], ["me/reviews", "me/more"])


def test_marks_that_are_no_pair_are_refused():
    # Red for: a second card put below the ruins of the first.
    with pytest.raises(SwagError, match="should hold one line"):
        merge_card(some_card(), some_card().text.replace("<!-- swag_trainer card ends -->", ""))


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x85\u2028\u2029\ufeff"), max_size=40)
texts = st.lists(lines | st.sampled_from(["---", "# T", "<!--", "-->", "```", "{{ x }}", "| a |"]), max_size=6).map("\n".join)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
values = st.recursive(words | st.integers() | st.booleans(), lambda inner: st.lists(inner, max_size=3), max_leaves=5)
keys = st.text("abcdefghij_-", min_size=1, max_size=10).filter(lambda key: key.isidentifier())


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(keys, values, max_size=4), texts, texts)
def test_whatever_stands_around_the_marks_is_kept_to_the_letter(metadata, above, below):
    # Red for: stripping, a replacement text read as a pattern (\\1), metadata re-typed ("no" -> false).
    own = str(some_card())
    first = merge_card(some_card(), f"---\n{yaml.safe_dump(metadata)}---\n{above}\n{find_marked(own).block}\n{below}")
    again = merge_card(some_card(metrics={"SWAG": {"ECE": 0.25}}), str(first))
    for card in (first, again):
        found = find_marked(RepoCard(str(card)).text)
        assert (found.before, found.after) == (f"{above}\n", f"\n{below}")
        data = yaml.safe_load(str(card).split("\n---\n")[0])
        assert {key: data[key] for key in metadata if metadata[key] is not None} == metadata
    assert str(merge_card(some_card(metrics={"SWAG": {"ECE": 0.25}}), again)) == str(again)
