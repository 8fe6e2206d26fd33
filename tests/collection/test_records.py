import pytest

from swag_trainer.collection.records import MOMENTS_FILE, RECORDS_KEY, moments_file, stored_records

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("name", ["default", "head", "A-1_b", "x" * 64])
def test_a_name_gives_a_file_that_begins_with_swag_moments(name):
    # Red for: a name lost, or two names with one file.
    expected = MOMENTS_FILE if name == "default" else f"swag_moments.{name}.safetensors"
    assert moments_file(name) == expected


@pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "..", "a.b", "ä", "a\n", "a\0", " ", None, 3, b"default"])
def test_a_name_outside_the_pattern_is_refused(name):
    # Red for: a path, a control character, or "$" in place of a full match, which lets a line's end through.
    with pytest.raises(ValueError, match="letters, digits"):
        moments_file(name)


def test_records_come_back_as_they_were_stored():
    # Red for: values dropped from a record that is in order.
    records = {
        "default": {"digest": None, "rank": 4},
        "head": {"digest": DIGEST, "adapters_digest": DIGEST, "more": [1, {"x": None}]},
    }
    assert stored_records({RECORDS_KEY: records, "TrainerControl": {}}) == records


@pytest.mark.parametrize("callbacks", [None, [], "x", 3, {}, {RECORDS_KEY: None}, {RECORDS_KEY: []}, {RECORDS_KEY: "default"}])
def test_no_records_come_out_of_what_holds_none(callbacks):
    # Red for: AttributeError on what a downloaded trainer_state.json says.
    assert stored_records(callbacks) == {}


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("../x", {"digest": DIGEST}),
        ("a.b", {"digest": DIGEST}),
        ("", {"digest": None}),
        ("x" * 65, {"digest": None}),
        (3, {"digest": None}),
        ("a", None),
        ("a", [["digest", DIGEST]]),
        ("a", {}),
        ("a", {"digest": 0}),
        ("a", {"digest": False}),
        ("a", {"digest": [DIGEST]}),
        ("a", {"digest": "/etc/passwd"}),
        ("a", {"digest": DIGEST.upper()}),
        ("a", {"digest": DIGEST + "\n"}),
        ("a", {"digest": DIGEST[:-1]}),
        ("a", {"digest": DIGEST, "adapters_digest": 3}),
    ],
)
def test_a_hostile_record_is_dropped_and_the_others_stay(name, record):
    # Red for: a type or a name taken from somebody else's file.
    good = {"default": {"digest": DIGEST}}
    assert stored_records({RECORDS_KEY: {**good, name: record}}) == good
