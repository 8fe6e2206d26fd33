import pytest

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.provenance import Provenance

OLDEST = {"num_collected": 3, "schedule": "Every(steps=5)", "first_step": 5, "last_step": 15}


def test_a_document_of_an_earlier_version_keeps_the_defaults_of_the_facts_it_did_not_know():
    # Red for: every new fact making all older posteriors unreadable.
    assert Provenance.from_document(OLDEST, where="'file'") == Provenance(**OLDEST)


def test_what_was_written_is_read_back_unchanged():
    # Red for: a type that JSON or the check of types does not give back.
    facts = Provenance(**OLDEST, steps=[5, 10, 15], learning_rates=[0.1, None, 1], base_fingerprint={"a.b": [0.5, 2]})
    assert Provenance.from_document(facts.as_document(), where="'file'") == facts


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": [5, "10"]},
        {"steps": (5, 10)},
        {"learning_rates": ["0.1"]},
        {"base_fingerprint": {"a": [None]}},
        {"base_fingerprint": [[1.0]]},
        {"labels": [1]},
        {"num_collected": True},
        {"scale": None},
        {"colour": "red"},
    ],
)
def test_a_fact_of_another_type_or_an_unknown_one_is_refused_by_name(wrong):
    # Red for: a value from somebody else's file taken as it comes.
    with pytest.raises(PosteriorFormatError, match=next(iter(wrong))):
        Provenance.from_document(OLDEST | wrong, where="'file'")


@pytest.mark.parametrize("name", OLDEST)
def test_a_fact_that_cannot_be_guessed_is_needed(name):
    # Red for: a posterior of an unknown number of snapshots.
    with pytest.raises(PosteriorFormatError, match="should state"):
        Provenance.from_document({key: value for key, value in OLDEST.items() if key != name}, where="'file'")
