import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import some_results

from hub_cards import CardResults
from swag_trainer import SwagError
from swag_trainer.evaluation.comparison import Comparison
from swag_trainer.metrics import Interval

LEVEL = {"interval_level": 0.95}
OLD = {"dataset", "split", "revision", "num_examples", "num_samples", "seed", "num_bins", "metrics"}


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
        ({"metrics": {"SWAG": {}}}, r"no metrics for the method 'SWAG'"),
        ({"metrics": {"": {"ECE": 0.1}}}, r"by texts, got ''"),
        ({"metrics": {"SWAG": {3: 0.1}}}, r"by texts, got 'SWAG' and 3"),
        ({"metrics": {"SWAG": {"ECE": float("nan")}}}, r"finite numbers, got nan for 'ECE' of 'SWAG'"),
        ({"metrics": {"SWAG": {"ECE": float("inf")}}}, r"finite numbers, got inf"),
        ({"metrics": {"SWAG": {"ECE": "0.03"}}}, r"finite numbers, got '0.03'"),
        ({"metrics": {"SWAG": {"ECE": False}}}, r"finite numbers, got False"),
        ({"metrics": {"SWAG": {"ECE": 10**400}}}, r"finite numbers, got 1000"),
        ({"metrics": {"SWAG": 0.3}}, r"metrics=.*is a mapping, got 0\.3"),
        ({"metrics": [0.3]}, r"metrics=.*is a mapping, got \[0\.3\]"),
        ({"intervals": {"SWAG": {"ECE": (0.02, 0.04)}}}, r"intervals=.*interval_level=.*together"),
        (LEVEL, r"intervals=.*interval_level=.*together.*got \{\} and 0\.95"),
        ({"intervals": {"SWA": {"ECE": (0.02, 0.04)}}, **LEVEL}, r"'ECE' of 'SWA', which has no value"),
        ({"intervals": {"SWAG": {"NLL": (0.02, 0.04)}}, **LEVEL}, r"'NLL' of 'SWAG', which has no value"),
        ({"intervals": {"SWAG": {"ECE": (0.04, 0.02)}}, **LEVEL}, r"lower one first, got \(0\.04, 0\.02\)"),
        ({"intervals": {"SWAG": {"ECE": (0.04,)}}, **LEVEL}, r"pairs of finite numbers"),
        ({"intervals": {"SWAG": {"ECE": (0.0, math.nan)}}, **LEVEL}, r"pairs of finite numbers"),
        ({"intervals": {"SWAG": {"ECE": (0.02, 0.04)}}, "interval_level": 95}, r"interval_level=.*between 0 and 1.*got 95"),
        ({"scale": -1.0}, r"scale=.*at least 0.*got -1"),
        ({"scale": math.inf}, r"scale=.*finite.*got inf"),
        ({"temperature": 0.0}, r"temperature=.*above 0.*got 0"),
        ({"ood": "imdb"}, r"ood=.*num_ood=.*together"),
        ({"num_ood": 500}, r"ood=.*num_ood=.*together"),
        ({"ood": "imdb", "num_ood": 0}, r"num_ood=.*at least 1, got 0"),
        ({"ood": "/home/alice/imdb", "num_ood": 5}, r"ood=.*local path"),
        ({"seconds_per_example": {"SWA": 0.1}}, r"seconds_per_example=.*0\.1 seconds to 'SWA'"),
        ({"seconds_per_example": {"SWAG": -0.1}}, r"seconds_per_example=.*-0\.1"),
        ({"fit_seconds": {"SWAG": -0.1}}, r"fit_seconds=.*-0\.1"),
        ({"num_trainings": {"SWAG": 1.5}}, r"num_trainings=.*1\.5 trainings to 'SWAG'"),
        ({"num_trainings": {"SWAG": 0}}, r"num_trainings=.*0 trainings"),
        ({"versions": {"torch": 2.13}}, r"versions=.*by texts, got 'torch': 2\.13"),
        ({"comparisons": ["SWAG is best"]}, r"comparisons=.*what compare\(\) returns, got 'SWAG is best'"),
        ({"comparisons": [Comparison("SWAG", " ", Interval(0.1, 0.05, 0.2), 872)]}, r"comparisons=.*non-empty text"),
        ({"comparisons": [Comparison("SWAG", "MAP", Interval(math.nan, 0, 1), 872)]}, r"comparisons=.*finite numbers.*'MAP'"),
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


@pytest.mark.parametrize(
    "path",
    [
        "/home/alice/reviews.jsonl",
        r"C:\Users\alice\reviews.jsonl",
        "~/reviews.jsonl",
        "../alice/reviews.jsonl",
        "./reviews.jsonl",
        "file:///home/alice/reviews.jsonl",
    ],
)
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


def test_a_metric_that_a_method_cannot_have_is_none_and_has_no_interval():
    # Red for: a zero in its place, an interval of nothing, a None that JSON does not give back.
    metrics = {"MAP": {"NLL": 0.5, "auroc_ood_score": None}, "SWAG": {"NLL": 0.4, "auroc_ood_score": 0.9}}
    results = some_results(metrics=metrics, comparisons=[Comparison("SWAG", "MAP", Interval(0.1, 0.05, 0.2), 872)])
    assert CardResults.from_json(results.to_json()) == results and results.metrics["MAP"]["auroc_ood_score"] is None
    with pytest.raises(ValueError, match="'auroc_ood_score' of 'MAP', which has no value"):
        some_results(metrics=metrics, intervals={"MAP": {"auroc_ood_score": (0.1, 0.2)}}, **LEVEL)


def test_every_method_has_its_figures_in_the_order_of_the_first():
    # Red for: columns of a table that belong to another metric in the second row.
    results = some_results(metrics={"MAP": {"accuracy": 0.9, "ECE": 0.1}, "SWAG": {"ECE": 0.2, "accuracy": 0.8}})
    assert [list(figures.items()) for figures in results.metrics.values()] == [
        [("accuracy", 0.9), ("ECE", 0.1)],
        [("accuracy", 0.8), ("ECE", 0.2)],
    ]


def full_results(**changes):
    facts = {
        "intervals": {"SWAG": {"ECE": (0.0251, 0.04)}},
        "interval_level": 0.95,
        "seconds_per_example": {"MAP": 0.0021, "SWAG": 0.0103},
        "num_trainings": {"MAP": 1, "SWAG": 3},
        "fit_seconds": {"SWAG": 2.5},
        "scale": 0.5,
        "temperature": 1.25,
        "ood": "imdb",
        "num_ood": 500,
        "versions": {"torch": "2.13.0"},
    }
    return some_results(**facts | changes)


def test_a_record_written_before_the_optional_facts_were_known_is_still_one():
    # Red for: a new fact without a default, or from_json asking for all of them.
    old = {name: value for name, value in json.loads(some_results().to_json()).items() if name in OLD}
    assert CardResults.from_json(json.dumps(old)) == some_results()


def test_a_record_comes_back_from_json_as_it_was_intervals_as_pairs():
    # Red for: lists in place of pairs, figures rounded, a fact left out.
    results = full_results(metrics={"MAP": {"ECE": 1 / 3}, "SWAG": {"ECE": 0.1 + 0.2}})
    assert CardResults.from_json(results.to_json()) == results
    assert results != some_results(metrics=results.metrics)


names = st.text(min_size=1).filter(lambda text: text.strip())
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(names, numbers, min_size=1), names, st.dictionaries(names, names), st.integers(min_value=0))
def test_every_record_that_can_be_made_survives_json(figures, name, versions, seed):
    # Red for: ensure_ascii turned off with lone surrogates about, -0.0 or 5e-324 rounded, keys stripped.
    pairs = {metric: (min(value, 0.0), max(value, 0.0)) for metric, value in figures.items()}
    results = some_results(
        split=name,
        seed=seed,
        metrics={name: figures},
        intervals={name: pairs},
        interval_level=0.9,
        versions=versions,
    )
    again = CardResults.from_json(results.to_json())
    assert again == results
    assert repr(again) == repr(results)  # == takes -0.0 for 0.0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "expects an object.*list"),
        ('{"dataset": "d"}', "expects an object that states.*'dataset'"),
        (json.dumps({**json.loads(some_results().to_json()), "accuracy": 1}), "expects an object.*'accuracy'"),
        (some_results().to_json().replace("0.0312", "NaN"), "invalid record.*finite numbers, got nan"),
        (some_results().to_json().replace('"glue/sst2"', '"/home/alice"'), "invalid record.*local path"),
        (some_results().to_json().replace("0.0312", "1" * 400), "invalid record.*finite numbers"),
        (
            some_results().to_json().replace('"comparisons": []', '"comparisons": [{"method": "SWAG"}]'),
            "invalid record.*difference",
        ),
        (some_results().to_json().replace('"comparisons": []', '"comparisons": 3'), "invalid record"),
    ],
)
def test_a_text_that_is_no_record_is_refused_saying_why(text, complaint):
    # Red for: a KeyError, TypeError, RecursionError or OverflowError; or a record that skips its own checks.
    with pytest.raises(SwagError, match=complaint):
        CardResults.from_json(text)


def test_optional_mappings_are_copied_too():
    # Red for: keeping the caller's intervals, seconds or versions.
    versions, intervals = {"torch": "2"}, {"SWAG": {"ECE": [0.1, 0.2]}}
    results = some_results(versions=versions, intervals=intervals, interval_level=np.float64(0.95))
    versions["torch"] = "3"
    intervals["SWAG"]["ECE"][0] = 9
    assert (results.versions, results.intervals) == ({"torch": "2"}, {"SWAG": {"ECE": (0.1, 0.2)}})
    assert type(results.interval_level) is float
