import io
import json

import numpy as np
import pytest

from swag_trainer import metrics
from swag_trainer.errors import SwagError
from swag_trainer.evaluation.measurement import measure
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics.selective import area_under_risk_coverage

N, M, C = 60, 40, 3


def some_answers(seed=0, *, draws=5, foreign=True, time=None):
    generator = np.random.default_rng(seed)
    known = generator.dirichlet([0.4] * C, size=(draws, N))
    return MethodPredictions.from_draws(
        known, generator.dirichlet([0.8] * C, size=(draws, M)) if foreign else None, seconds_per_row=time
    )


def some_labels():
    """SampledModule from the answers, so that bins err to both sides and errors of different bins differ."""
    generator = np.random.default_rng(9)
    return np.array([generator.choice(C, p=row) for row in some_answers().probabilities])


def test_every_figure_is_that_of_its_metric():
    # Red for: a metric under another's name, bins that are not passed on, known and foreign rows exchanged.
    answers, labels = some_answers(), some_labels()
    figures = measure({"ours": answers}, labels, num_bins=7, num_resamples=20).figures["ours"]
    p = answers.probabilities
    scores = {
        "entropy": [-(q * np.log(q)).sum(1) for q in (p, answers.foreign_probabilities)],
        "one_minus_max": [1 - q.max(1) for q in (p, answers.foreign_probabilities)],
        "mutual_information": [answers.mutual_information, answers.foreign_mutual_information],
    }
    expected = {
        "accuracy": metrics.accuracy(p, labels),
        "macro_f1": metrics.macro_f1(p, labels),
        "nll": metrics.negative_log_likelihood(p, labels),
        "ece": metrics.expected_calibration_error(p, labels, num_bins=7),
        "ece_mass": metrics.expected_calibration_error(p, labels, num_bins=7, scheme="quantile"),
        "brier": metrics.brier_score(p, labels),
        "aurc": area_under_risk_coverage(p.max(1), p.argmax(1) == labels),
    }
    for score, (known, foreign) in scores.items():
        expected[f"auroc_{score}"] = metrics.auroc(known, foreign)
        expected[f"aupr_{score}"] = metrics.aupr(known, foreign)
        expected[f"fpr95_{score}"] = metrics.fpr_at_tpr(known, foreign)
    assert figures.keys() == expected.keys()
    for metric, value in expected.items():
        assert figures[metric].value == pytest.approx(value, abs=1e-9), metric
        assert figures[metric].low <= figures[metric].high


def test_intervals_are_those_of_the_bootstrap_and_the_same_rows_for_every_method():
    # Red for: options that are not passed on, resamples that differ between methods.
    answers, labels = some_answers(foreign=False), some_labels()
    options = {"num_resamples": 200, "level": 0.8, "seed": 3}
    figures = measure({"one": answers, "two": answers}, labels, **options).figures
    assert figures["one"] == figures["two"]
    expected = metrics.bootstrap_interval(metrics.accuracy, answers.probabilities, labels, **options)
    assert figures["one"]["accuracy"] == expected


def test_resamples_keep_the_numbers_of_known_and_foreign_rows():
    # Red for: one pot for both, from which a resample without any foreign row may come.
    known, foreign = np.tile([[0.9, 0.1]], (30, 1)), np.array([[0.5, 0.5]])
    answers = MethodPredictions(known, foreign_probabilities=foreign)
    figures = measure({"ours": answers}, np.zeros(30, int), num_resamples=100).figures["ours"]
    assert figures["auroc_entropy"] == metrics.Interval(1.0, 1.0, 1.0)


def test_what_a_method_lacks_is_left_out_not_filled_in():
    # Red for: figures of a mutual information of zero, or of no foreign rows.
    measured = measure({"one pass": some_answers(draws=1), "draws": some_answers(time=0.002)}, some_labels(), num_resamples=10)
    assert "auroc_mutual_information" not in measured.figures["one pass"]
    assert "auroc_mutual_information" in measured.figures["draws"]
    alone = measure({"ours": some_answers(foreign=False)}, some_labels(), num_resamples=10)
    assert not any("_entropy" in metric for metric in alone.figures["ours"])


def test_the_document_survives_json_and_brings_its_circumstances():
    # Red for: numpy numbers that json refuses, figures without N, bins, resamples, draws and seed.
    methods = {"one pass": some_answers(draws=1), "draws": some_answers(time=0.002)}
    measured = measure(methods, some_labels(), num_bins=5, num_resamples=10, level=0.9, seed=2)
    document = json.loads(json.dumps(measured.as_json(), allow_nan=False))
    circumstances = {key: value for key, value in document.items() if key != "methods"}
    assert circumstances == {
        "num_rows": N, "num_foreign": M, "num_bins": 5, "num_resamples": 10, "level": 0.9, "seed": 2
    }  # fmt: skip
    assert document["methods"]["draws"]["num_draws"] == 5 and document["methods"]["draws"]["seconds_per_row"] == 0.002
    assert document["methods"]["one pass"]["seconds_per_row"] is None
    interval = measured.figures["draws"]["nll"]
    assert document["methods"]["draws"]["figures"]["nll"] == {
        "value": interval.value, "low": interval.low, "high": interval.high
    }  # fmt: skip


def test_the_table_has_a_row_for_each_metric_and_a_column_for_each_method():
    # Red for: markup in a method's name that paints the table, a figure in another's column.
    console = pytest.importorskip("rich.console")
    methods = {"one pass": some_answers(draws=1), "[red]ours[/red]": some_answers(1, time=0.002)}
    measured = measure(methods, some_labels(), num_resamples=10)
    shown = console.Console(width=200, file=io.StringIO())
    shown.print(measured.table())
    text = shown.file.getvalue()
    assert "[red]ours[/red]" in text
    lines = {line.split("│")[1].strip(): line.split("│")[2:4] for line in text.splitlines() if line.count("│") > 2}
    assert [cell.strip() for cell in lines["nll"]] == [str(figures["nll"]) for figures in measured.figures.values()]
    assert lines["auroc_mutual_information"][0].strip() == "-"
    assert [cell.strip() for cell in lines["ms per row"]] == ["-", "2"]
    assert [cell.strip() for cell in lines["draws"]] == ["1", "5"]


def test_the_rows_in_the_file_give_the_figures_again(tmp_path):
    # Red for: rows of another method, foreign rows with a label, a confidence of the wrong class.
    parquet = pytest.importorskip("pyarrow.parquet")
    methods, labels = {"one pass": some_answers(draws=1), "draws": some_answers(1)}, some_labels()
    measured = measure(methods, labels, num_resamples=10)
    measured.rows_to_parquet(tmp_path / "rows.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(rows) == 2 * (N + M)
    for name, answers in methods.items():
        known = [row for row in rows if row["method"] == name and not row["is_foreign"]]
        foreign = [row for row in rows if row["method"] == name and row["is_foreign"]]
        assert [row["row"] for row in known] == list(range(N)) and [row["row"] for row in foreign] == list(range(M))
        assert [row["label"] for row in known] == labels.tolist()
        assert np.mean([row["correct"] for row in known]) == pytest.approx(measured.figures[name]["accuracy"].value)
        assert all(row["label"] is None and row["correct"] is None for row in foreign)
        np.testing.assert_array_equal([row["probabilities"] for row in known], answers.probabilities)
        np.testing.assert_array_equal([row["probabilities"] for row in foreign], answers.foreign_probabilities)
        assert all(row["confidence"] == max(row["probabilities"]) == row["probabilities"][row["prediction"]] for row in known)
        area = metrics.auroc([row["entropy"] for row in known], [row["entropy"] for row in foreign])
        assert area == pytest.approx(measured.figures[name]["auroc_entropy"].value)
    assert all(row["mutual_information"] is None for row in rows if row["method"] == "one pass")
    information = [row["mutual_information"] for row in rows if row["method"] == "draws" and row["is_foreign"]]
    np.testing.assert_array_equal(information, methods["draws"].foreign_mutual_information)


def test_methods_that_answered_other_rows_are_not_compared():
    # Red for: figures side by side that are of different rows.
    labels = some_labels()
    with pytest.raises(SwagError, match="at least one method"):
        measure({}, labels)
    with pytest.raises(SwagError, match="40 foreign rows and 'b' 60 rows of 3 classes and no foreign rows"):
        measure({"a": some_answers(), "b": some_answers(foreign=False)}, labels)
    with pytest.raises(ValueError, match="N labels are needed"):
        measure({"a": some_answers()}, labels[:-1])
    with pytest.raises(ValueError, match="from 0 to 2"):
        measure({"a": some_answers()}, labels + 1)
