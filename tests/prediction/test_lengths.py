import pytest

from swag_trainer.prediction.lengths import batches_of_one_length


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_row_is_in_one_batch_of_rows_of_its_length(batch_size):
    # Red for: a row that is lost where a group does not fill its last batch, more rows in a batch than asked for,
    # the shortest rows first.
    rows = [{"input_ids": [0] * (number * 7 % 4)} for number in range(20)]
    batches, order = batches_of_one_length(rows, batch_size)
    assert sorted(order) == list(range(20)) and [place for batch in batches for place in batch] == order
    assert [len(rows[place]["input_ids"]) for place in order] == sorted((len(row["input_ids"]) for row in rows), reverse=True)
    for batch in batches:
        assert 1 <= len(batch) <= batch_size and len({len(rows[place]["input_ids"]) for place in batch}) == 1


def test_rows_without_tokens_share_batches_in_their_own_order():
    # Red for: rows of pictures, which have no input_ids, refused.
    assert batches_of_one_length([{"pixel_values": place} for place in range(5)], 2) == ([[0, 1], [2, 3], [4]], [0, 1, 2, 3, 4])
