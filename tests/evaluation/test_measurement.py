import dataclasses
import io
import json
import os

import numpy as np
import pytest
import torch

from swag_trainer import metrics
from swag_trainer.errors import SwagError
from swag_trainer.evaluation.card_results import CardResults
from swag_trainer.evaluation.measurement import Measurement, measure
from swag_trainer.evaluation.parquet import predictions_to_parquet
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics.selective import area_under_generalised_risk_coverage, area_under_risk_coverage
from swag_trainer.prediction.predictive import Predictive
from swag_trainer.prediction.sampler import Sampling

N, M, C = 60, 40, 3


def some_predictions(seed=0, *, draws=5, ood=True, time=None):
    generator = np.random.default_rng(seed)
    inside = generator.dirichlet([0.4] * C, size=(draws, N))
    return MethodPredictions.from_draws(
        inside, generator.dirichlet([0.8] * C, size=(draws, M)) if ood else None, seconds_per_example=time
    )


def some_labels():
    """Drawn from the predictions, so that bins err to both sides and errors of different bins differ."""
    generator = np.random.default_rng(9)
    return np.array([generator.choice(C, p=row) for row in some_predictions().probabilities])


def test_every_value_is_that_of_its_metric():
    # Red for: a metric under another's name, bins that are not passed on, in-distribution and OOD examples exchanged.
    answers, labels = some_predictions(), some_labels()
    found = measure({"ours": answers}, labels, num_bins=7, num_resamples=20).metrics["ours"]
    p = answers.probabilities
    scores = {
        "entropy": [-(q * np.log(q)).sum(1) for q in (p, answers.ood_probabilities)],
        "one_minus_max": [1 - q.max(1) for q in (p, answers.ood_probabilities)],
        "mutual_information": [answers.mutual_information, answers.ood_mutual_information],
    }
    expected = {
        "accuracy": metrics.accuracy(p, labels),
        "macro_f1": metrics.macro_f1(p, labels),
        "nll": metrics.negative_log_likelihood(p, labels),
        "ece": metrics.expected_calibration_error(p, labels, num_bins=7),
        "ece_quantile": metrics.expected_calibration_error(p, labels, num_bins=7, scheme="quantile"),
        "brier": metrics.brier_score(p, labels),
        "aurc": area_under_risk_coverage(p.max(1), p.argmax(1) == labels),
        "augrc": area_under_generalised_risk_coverage(p.max(1), p.argmax(1) == labels),
    }
    for score, (inside, ood) in scores.items():
        expected[f"auroc_{score}"] = metrics.auroc(inside, ood)
        expected[f"aupr_{score}"] = metrics.aupr(inside, ood)
        expected[f"fpr95_{score}"] = metrics.fpr_at_tpr(inside, ood)
    assert found.keys() == expected.keys()
    for metric, value in expected.items():
        assert found[metric].value == pytest.approx(value, abs=1e-9), metric
        assert found[metric].low <= found[metric].value <= found[metric].high


def test_intervals_are_those_of_the_bootstrap_and_the_same_rows_for_every_method():
    # Red for: options that are not passed on, resamples that differ between methods.
    answers, labels = some_predictions(ood=False), some_labels()
    options = {"num_resamples": 200, "level": 0.8, "seed": 3}
    found = measure({"one": answers, "two": answers}, labels, **options).metrics
    assert found["one"] == found["two"]
    expected = metrics.bootstrap_interval(metrics.accuracy, answers.probabilities, labels, **options)
    assert found["one"]["accuracy"] == expected


def test_resamples_keep_the_numbers_of_in_distribution_and_ood_examples():
    # Red for: one pot for both, from which a resample without any OOD example may come.
    inside, ood = np.tile([[0.9, 0.1]], (30, 1)), np.array([[0.5, 0.5]])
    answers = MethodPredictions(inside, ood_probabilities=ood)
    found = measure({"ours": answers}, np.zeros(30, int), num_resamples=100).metrics["ours"]
    assert found["auroc_entropy"] == metrics.Interval(1.0, 1.0, 1.0)


def test_what_a_method_lacks_is_left_out_not_filled_in():
    # Red for: figures of a mutual information of zero, or of no OOD examples.
    measured = measure(
        {"one pass": some_predictions(draws=1), "draws": some_predictions(time=0.002)}, some_labels(), num_resamples=10
    )
    assert "auroc_mutual_information" not in measured.metrics["one pass"]
    assert "auroc_mutual_information" in measured.metrics["draws"]
    alone = measure({"ours": some_predictions(ood=False)}, some_labels(), num_resamples=10)
    assert not any("_entropy" in metric for metric in alone.metrics["ours"])


def as_numbers(measured):
    """Everything that a measurement holds, arrays as lists."""
    return json.loads(json.dumps(dataclasses.asdict(measured), default=lambda array: array.tolist()))


def test_a_record_survives_json_and_brings_its_circumstances():
    # Red for: numpy numbers that json refuses, metrics without N, bins, resamples, draws, data set and seed, an array that is lost.
    fitted = dataclasses.replace(some_predictions(draws=1), num_trainings=3, fit_seconds=1.5)
    methods = {"one pass": fitted, "SWAG": some_predictions(time=0.002)}
    circumstances = {"dataset": "glue/sst2", "split": "test", "revision": "55", "ood": "imdb", "map_weights": "last"}
    settings = {"num_bins": 5, "num_resamples": 10, "level": 0.9, "seed": 2}
    measured = measure(methods, some_labels(), sampling=Sampling(num_samples=5, seed=7), **circumstances, **settings)
    again = Measurement.from_json(measured.to_json())
    assert as_numbers(again) == as_numbers(measured)
    for name, value in {**circumstances, **settings, "num_examples": N, "num_ood": M, "posterior": None}.items():
        assert getattr(again, name) == value, name
    assert again.sampling == Sampling(num_samples=5, seed=7)
    assert (again.methods["SWAG"].num_draws, again.methods["SWAG"].seconds_per_example) == (5, 0.002)
    assert again.methods["one pass"].seconds_per_example is None
    costs = [(method.num_trainings, method.fit_seconds) for method in again.methods.values()]
    assert costs == [(3, 1.5), (None, None)]
    earlier = json.loads(measured.to_json())
    for method in earlier["methods"].values():
        del method["num_trainings"], method["fit_seconds"]
    assert Measurement.from_json(json.dumps(earlier)).methods["one pass"].num_trainings is None
    assert set(again.versions) == {"swag_trainer", "torch", "transformers", "peft"}
    expected = metrics.uncertainty_scores(methods["SWAG"].probabilities)["entropy"]
    np.testing.assert_array_equal(again.uncertainties["entropy"][0], expected)


def test_a_card_gets_every_metric_and_the_comparisons():
    # Red for: scores that only the posterior has left out, limits of another metric, OOD examples that the card does not name.
    methods = {"one pass": some_predictions(draws=1), "SWAG": some_predictions(time=0.002)}
    sampling = Sampling(num_samples=5, seed=7, scale=0.5, temperature=1.25)
    measured = measure(methods, some_labels(), dataset="d", split="test", ood="imdb", sampling=sampling, num_resamples=10)
    card = measured.to_card()
    assert set(card.metrics["one pass"]) == set(card.metrics["SWAG"]) == set(measured.metrics["SWAG"])
    assert card.metrics["one pass"]["auroc_mutual_information"] is None
    assert card.comparisons == tuple(measured.comparisons) and CardResults.from_json(card.to_json()) == card
    nll = measured.metrics["SWAG"]["nll"]
    assert (card.metrics["SWAG"]["nll"], card.intervals["SWAG"]["nll"]) == (nll.value, (nll.low, nll.high))
    assert (card.num_examples, card.ood, card.num_ood, card.num_samples, card.seed) == (N, "imdb", M, 5, 7)
    assert (card.scale, card.temperature, card.seconds_per_example) == (0.5, 1.25, {"SWAG": 0.002})
    with pytest.raises(SwagError, match="sampling="):
        measure(methods, some_labels(), split="test", num_resamples=2).to_card()


def test_results_of_an_earlier_version_are_read():
    # Red for: a key of format 1 that is not found under its new name.
    curve = {"coverage": [0.5, 1.0], "risk": [0.0, 0.5], "threshold": [0.9, 0.6]}
    bins = {"edges": [0.0, 0.5, 1.0], "counts": [0, 2], "confidence": [None, 0.75], "accuracy": [None, 0.5]}
    old = {
        "format": 1,
        "posterior": "0123456789abcdef",
        "map_weights": "last",
        "card": {
            "dataset": "d", "split": "test", "revision": None, "num_examples": 2, "num_samples": 10, "seed": 3, "num_bins": 2,
            "metrics": {"SWAG": {"nll": 0.5, "ece_mass": 0.25}}, "intervals": {}, "interval_level": None,
            "seconds_per_row": {"SWAG": 0.01}, "scale": 2.0, "temperature": 1.5, "foreign": "imdb", "num_foreign": 3, "versions": {"torch": "2"},
        },
        "measurement": {
            "num_rows": 2, "num_foreign": 3, "num_bins": 2, "num_resamples": 100, "level": 0.95, "seed": 3,
            "methods": {"SWAG": {"num_draws": 10.0, "seconds_per_row": 0.01, "figures": {
                "nll": {"value": 0.5, "low": 0.4, "high": 0.6}, "ece_mass": {"value": 0.25, "low": 0.2, "high": 0.3}}}},
        },
        "reliability": {"SWAG": bins},
        "risk_coverage": {"SWAG": curve},
        "uncertainty": {"entropy": {"known": [0.1, 0.2], "foreign": [0.3, 0.4, 0.5]}},
    }  # fmt: skip
    measured = Measurement.from_json(json.dumps(old))
    assert (measured.ood, measured.num_ood, measured.num_examples, measured.num_resamples) == ("imdb", 3, 2, 100)
    assert measured.sampling == Sampling(num_samples=10, seed=3, scale=2.0, temperature=1.5)
    assert measured.metrics["SWAG"]["ece_quantile"] == metrics.Interval(0.25, 0.2, 0.3)
    assert measured.uncertainties["entropy"][1].tolist() == [0.3, 0.4, 0.5]
    assert measured.methods["SWAG"].seconds_per_example == 0.01
    assert np.isnan(measured.methods["SWAG"].bins.accuracy[0]) and measured.methods["SWAG"].curve.risk.tolist() == curve["risk"]
    card = measured.to_card()
    assert (card.ood, card.num_ood, card.metrics["SWAG"]["ece_quantile"]) == ("imdb", 3, 0.25)
    assert as_numbers(Measurement.from_json(measured.to_json())).keys() == as_numbers(measured).keys()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 3}', '{"format": 1, "card": {}}', '{"format": 2, "methods": 3}'])
def test_a_file_of_another_form_is_refused_and_named(tmp_path, text):
    # Red for: a traceback for a file that was edited or taken for another.
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(SwagError, match=r"odd\.json"):
        Measurement.read(tmp_path / "odd.json")


def test_the_table_fits_80_columns_and_cuts_no_name():
    # Red for: a name that is cut or read as markup, a metric in another's column or of another method, a table as wide as the screen.
    console = pytest.importorskip("rich.console")
    scores = {name: (np.arange(float(N)), np.arange(float(M))) for name in ("energy", "ood_score")}
    names = {
        "one pass": "one pass",
        "MC dropout, temperature": "MC dropout, / temperature",
        "[red]x[/red]": "[red]x[/red]",
        "averagednetworks": "averagednetw / orks",
        "SWAG": "SWAG",
    }
    methods = {name: dataclasses.replace(some_predictions(len(name), time=0.002), ood_scores=scores) for name in names}
    methods["one pass"] = some_predictions(draws=1)
    methods["SWAG"] = dataclasses.replace(methods["SWAG"], num_trainings=3, fit_seconds=0.125)
    measured = measure(methods, some_labels(), num_resamples=4)
    shown = {}
    for width in (80, 200):
        screen = console.Console(width=width, file=io.StringIO())
        screen.print(measured.table())
        shown[width] = [line.rstrip() for line in screen.file.getvalue().splitlines()]
    assert shown[80] == shown[200]
    lines = shown[80]
    assert max(map(len, lines)) <= 80
    starts = [place for place, line in enumerate(lines) if line.startswith("method")]
    blocks = [lines[start + 2 : start + 2 + 2 * len(names)] for start in starts]
    assert len(blocks) == 6
    costs = blocks.pop(2)  # without intervals
    for block in blocks:  # each method has two lines: its name and values, and below them the intervals
        found = [
            f"{above[:12].rstrip()} / {below[:12].rstrip()}".removesuffix(" / ")
            for above, below in zip(block[::2], block[1::2], strict=True)
        ]
        assert found == list(names.values())
    ours = measured.metrics["SWAG"]
    expected = [ours[metric] for metric in ("accuracy", "macro_f1", "nll", "ece", "ece_quantile")]
    assert blocks[0][-2].split()[1:] == [f"{each.value:.3f}" for each in expected]
    assert blocks[0][-1].split() == [f"{each.low:.3f}-{each.high:.3f}" for each in expected]
    for block, kind in zip(blocks[2:], ("auroc", "aupr", "fpr95"), strict=True):
        values = [ours[f"{kind}_{score}"].value for score in ("entropy", "one_minus_max", "mutual_information", *scores)]
        assert block[-2].split()[1:] == [f"{value:.3f}" for value in values]
        assert block[0].split()[-3:] == ["-", "-", "-"]
    assert costs[0].split()[2:] == ["-", "-", "-", "1"]
    assert next(line for line in costs if line.startswith("SWAG")).split()[1:] == ["3", "0.12", "2", "5"]


def test_the_bins_of_the_diagram_hold_about_as_many_examples_each_and_never_few():
    # Red for: the bins of the ECE, of equal width, most of which are all but empty; more bins than asked for.
    predictions, labels = some_predictions(ood=False), some_labels()
    for num_bins, expected in ((15, 4), (3, 3)):
        counts = measure({"ours": predictions}, labels, num_bins=num_bins, num_resamples=2).methods["ours"].bins.counts
        assert len(counts) == expected and counts.min() >= 60 // expected - 1


def test_the_rows_in_the_file_give_the_metrics_again(tmp_path):
    # Red for: rows of another method, OOD examples with a label, a confidence of the wrong class.
    parquet = pytest.importorskip("pyarrow.parquet")
    methods, labels = {"one pass": some_predictions(draws=1), "draws": some_predictions(1)}, some_labels()
    measured = measure(methods, labels, num_resamples=10)
    predictions_to_parquet(tmp_path / "rows.parquet", methods, labels)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(rows) == 2 * (N + M)
    for name, answers in methods.items():
        inside = [row for row in rows if row["method"] == name and not row["is_ood"]]
        ood = [row for row in rows if row["method"] == name and row["is_ood"]]
        assert [row["row"] for row in inside] == list(range(N)) and [row["row"] for row in ood] == list(range(M))
        assert [row["label"] for row in inside] == labels.tolist()
        assert np.mean([row["correct"] for row in inside]) == pytest.approx(measured.metrics[name]["accuracy"].value)
        assert all(row["label"] is None and row["correct"] is None for row in ood)
        np.testing.assert_array_equal([row["probabilities"] for row in inside], answers.probabilities)
        np.testing.assert_array_equal([row["probabilities"] for row in ood], answers.ood_probabilities)
        assert all(row["confidence"] == max(row["probabilities"]) == row["probabilities"][row["prediction"]] for row in inside)
        area = metrics.auroc([row["entropy"] for row in inside], [row["entropy"] for row in ood])
        assert area == pytest.approx(measured.metrics[name]["auroc_entropy"].value)
    assert all(row["mutual_information"] is row["energy"] is None for row in rows if row["method"] == "one pass")
    information = [row["mutual_information"] for row in rows if row["method"] == "draws" and row["is_ood"]]
    np.testing.assert_array_equal(information, methods["draws"].ood_mutual_information)


def test_the_rows_hold_the_energy_and_the_ood_score_of_every_example_with_and_without_ood_examples(tmp_path):
    # Red for: a column that is missing or another score's, scores left out because there are no OOD examples, both kinds exchanged.
    parquet = pytest.importorskip("pyarrow.parquet")
    given, outside = (
        dataclasses.replace(
            Predictive.from_logits(torch.randn(2, count, C, generator=torch.Generator().manual_seed(count)), "softmax"),
            ood_score=np.linspace(0, 0.9, count),
        )
        for count in (N, M)
    )
    for ood in (None, outside):
        methods = {"SWAG": MethodPredictions.from_predictive(given, ood)}
        predictions_to_parquet(tmp_path / "rows.parquet", methods, some_labels())
        rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
        for is_ood, predictive in ((False, given), (True, ood)):
            for name in ("energy", "ood_score", "mutual_information"):
                found = [row[name] for row in rows if row["is_ood"] == is_ood]
                np.testing.assert_array_equal(found, [] if predictive is None else getattr(predictive, name))


def test_methods_with_predictions_for_other_examples_are_not_compared():
    # Red for: figures side by side that are of different rows.
    labels = some_labels()
    with pytest.raises(SwagError, match="at least one method"):
        measure({}, labels)
    with pytest.raises(SwagError, match="40 OOD examples and 'b' for 60 examples of 3 classes and no OOD"):
        measure({"a": some_predictions(), "b": some_predictions(ood=False)}, labels)
    with pytest.raises(ValueError, match="N labels are needed"):
        measure({"a": some_predictions()}, labels[:-1])
    with pytest.raises(ValueError, match="from 0 to 2"):
        measure({"a": some_predictions()}, labels + 1)


def test_a_file_that_is_no_record_is_refused_at_once_and_without_its_escape_codes(tmp_path):
    # Red for: a pipe that is waited for, and names of a file written to the terminal as they are.
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(SwagError, match="not a regular file"):
        Measurement.read(tmp_path / "pipe.json")
    record = json.loads(measure({"ours": some_predictions()}, some_labels(), num_resamples=5, sampling=Sampling()).to_json())
    record["sampling"]["\x1b[31m"] = 1
    (tmp_path / "escape.json").write_text(json.dumps(record))
    with pytest.raises(SwagError) as caught:
        Measurement.read(tmp_path / "escape.json")
    assert "x1b[31m" in str(caught.value) and "\x1b" not in str(caught.value)
