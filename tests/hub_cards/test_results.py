import numpy as np
import pytest
from measured import some_results


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dataset": " "}, r"dataset=.*' '"),
        ({"dataset": None}, r"dataset=.*None"),
        ({"split": ""}, r"split="),
        ({"revision": ""}, r"revision=.*or None"),
        ({"num_examples": 0}, r"num_examples=.*at least 1, got 0"),
        ({"num_examples": 872.0}, r"num_examples=.*872\.0"),
        ({"num_samples": 0}, r"num_samples=.*at least 1, got 0"),
        ({"num_samples": True}, r"num_samples=.*True"),
        ({"seed": -1}, r"seed=.*at least 0, got -1"),
        ({"num_bins": 0}, r"num_bins=.*at least 1, got 0"),
        ({"metrics": {}}, r"at least one method"),
        ({"metrics": {"SWAG": {}}}, r"no figures for the method 'SWAG'"),
        ({"metrics": {"": {"ECE": 0.1}}}, r"by texts, got ''"),
        ({"metrics": {"SWAG": {3: 0.1}}}, r"by texts, got 'SWAG' and 3"),
        ({"metrics": {"SWAG": {"ECE": float("nan")}}}, r"finite numbers, got nan for 'ECE' of 'SWAG'"),
        ({"metrics": {"SWAG": {"ECE": float("inf")}}}, r"finite numbers, got inf"),
        ({"metrics": {"SWAG": {"ECE": "0.03"}}}, r"finite numbers, got '0.03'"),
        ({"metrics": {"SWAG": {"ECE": False}}}, r"finite numbers, got False"),
    ],
)
def test_a_record_with_a_hole_in_it_is_refused_naming_the_hole(changes, complaint):
    # Red for: any one of the checks left out, or a message that does not say which entry is wrong.
    with pytest.raises(ValueError, match=complaint):
        some_results(**changes)


def test_a_metric_of_one_method_only_is_refused_whichever_method_it_is():
    # Red for: a comparison that only looks for metrics the later method lacks.
    short, long = {"accuracy": 0.9}, {"accuracy": 0.9, "ECE": 0.1}
    for metrics in ({"MAP": short, "SWAG": long}, {"MAP": long, "SWAG": short}):
        with pytest.raises(ValueError, match="'ECE' is given for only one of 'MAP' and 'SWAG'"):
            some_results(metrics=metrics)


@pytest.mark.parametrize("path", ["/home/alice/reviews.jsonl", r"C:\Users\alice\reviews.jsonl", "~/reviews.jsonl"])
def test_a_local_path_is_no_name_of_a_data_set(path):
    # Red for: a card that tells everybody the layout of somebody's disk.
    with pytest.raises(ValueError, match="local path"):
        some_results(dataset=path)


def test_a_record_without_revision_and_with_seed_0_is_complete():
    # Red for: None or zero taken for a missing value.
    assert (some_results(revision=None).revision, some_results(seed=0).seed) == (None, 0)


def test_a_later_change_of_the_callers_figures_does_not_reach_the_record():
    # Red for: keeping the caller's dictionaries, the outer or the inner one.
    metrics = {"SWAG": {"ECE": 0.03}}
    results = some_results(metrics=metrics)
    metrics["SWAG"]["ECE"] = 0.001
    metrics["MAP"] = {"ECE": 0.5}
    assert results.metrics == {"SWAG": {"ECE": 0.03}}


def test_numbers_of_numpy_become_plain_ones():
    # Red for: NumPy's scalars in the record; YAML has no word for them.
    results = some_results(num_examples=np.int64(872), metrics={"SWAG": {"ECE": np.float64(0.03)}})
    assert type(results.num_examples) is int
    assert type(results.metrics["SWAG"]["ECE"]) is float


def test_every_method_has_its_figures_in_the_order_of_the_first():
    # Red for: columns of a table that belong to another metric in the second row.
    results = some_results(metrics={"MAP": {"accuracy": 0.9, "ECE": 0.1}, "SWAG": {"ECE": 0.2, "accuracy": 0.8}})
    assert [list(figures.items()) for figures in results.metrics.values()] == [
        [("accuracy", 0.9), ("ECE", 0.1)],
        [("accuracy", 0.8), ("ECE", 0.2)],
    ]
