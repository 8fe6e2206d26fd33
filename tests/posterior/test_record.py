import pytest

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.swag import SwagRecord

OLDEST = {"num_collected": 3, "schedule": "Every(steps=5)", "first_step": 5, "last_step": 15}


def test_a_document_of_an_earlier_version_keeps_the_defaults_of_the_fields_it_did_not_know():
    # Red for: every new field making all older posteriors unreadable.
    assert PosteriorRecord.from_document({}, where="'file'") == PosteriorRecord()
    assert SwagRecord.from_document(OLDEST, where="'file'") == SwagRecord(**OLDEST)


def test_what_was_written_is_read_back_unchanged():
    # Red for: a type that JSON or the check of types does not give back.
    record = PosteriorRecord(labels=["a"], base_fingerprint={"a.b": [0.5, 2]}, pad_token_id=0)
    assert PosteriorRecord.from_document(record.as_document(), where="'file'") == record


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (SwagRecord, {"steps": [5, "10"]}),
        (SwagRecord, {"steps": (5, 10)}),
        (SwagRecord, {"learning_rates": ["0.1"]}),
        (SwagRecord, {"num_collected": True}),
        (SwagRecord, {"num_collected": 1}),
        (SwagRecord, {"colour": "red"}),
        (PosteriorRecord, {"base_fingerprint": {"a": [None]}}),
        (PosteriorRecord, {"base_fingerprint": [[1.0]]}),
        (PosteriorRecord, {"labels": [1]}),
        (PosteriorRecord, {"scale": None}),
        (PosteriorRecord, {"scale": -1}),
        (PosteriorRecord, {"colour": "red"}),
    ],
)
def test_a_field_of_another_type_or_an_unknown_one_is_refused_by_name(kind, wrong):
    # Red for: a value from an untrusted file taken as it comes.
    known = OLDEST if kind is SwagRecord else {}
    with pytest.raises(PosteriorFormatError, match=next(iter(wrong))):
        kind.from_document(known | wrong, where="'file'")


@pytest.mark.parametrize("name", OLDEST)
def test_a_field_without_a_default_is_needed(name):
    # Red for: a posterior of an unknown number of snapshots.
    with pytest.raises(PosteriorFormatError, match="should state"):
        SwagRecord.from_document({key: value for key, value in OLDEST.items() if key != name}, where="'file'")


def test_a_whole_number_that_no_float_holds_is_refused_where_a_float_belongs():
    # Red for: an OverflowError in the card that prints it.
    with pytest.raises(PosteriorFormatError, match="learning_rates"):
        SwagRecord.from_document(OLDEST | {"learning_rates": [10**400]}, where="'file'")
