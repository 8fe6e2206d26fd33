import subprocess
import sys

import numpy as np
import pytest
from probability_cases import probability_case, probability_cases

from swag_trainer import metrics

evaluate = pytest.importorskip("evaluate")

from swag_trainer.metrics import modules  # noqa: E402


def all_modules():
    return {
        "accuracy": (modules.Accuracy(), metrics.accuracy),
        "brier": (modules.Brier(), metrics.brier_score),
        "classwise_ece": (modules.ClasswiseCalibrationError(), metrics.classwise_calibration_error),
        "ece": (modules.CalibrationError(), metrics.expected_calibration_error),
        "macro_f1": (modules.MacroF1(), metrics.macro_f1),
        "matthews_correlation": (modules.MatthewsCorrelation(), metrics.matthews_correlation),
        "nll": (modules.NegativeLogLikelihood(), metrics.negative_log_likelihood),
    }


def test_modules_combine_and_say_what_the_functions_say():
    # Red for: inputs that do not combine, probabilities rounded to float32 on the way, a module under another's name.
    pairs = all_modules()
    combined = evaluate.combine([module for module, _ in pairs.values()])
    for probabilities, labels in probability_cases(70):
        results = combined.compute(predictions=probabilities, references=labels)
        assert results == {key: function(probabilities, labels) for key, (_, function) in pairs.items()}


@pytest.mark.slow
def test_a_thousand_computations_are_those_of_the_functions_alone_and_combined(monkeypatch):
    # Red for: what the few cases above miss, and whatever one computation leaves behind for the next.
    # Half of a computation is a hash of the rows, for a cache that nobody asks.
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda dataset: "none")
    pairs = all_modules()
    combined = evaluate.combine([module for module, _ in pairs.values()])
    for index, (probabilities, labels) in enumerate(probability_cases(1000)):
        expected = {key: function(probabilities, labels) for key, (_, function) in pairs.items()}
        assert combined.compute(predictions=probabilities, references=labels) == expected
        key = list(pairs)[index // 7 % len(pairs)]  # the kinds of cases go round in sevens
        assert pairs[key][0].compute(predictions=probabilities, references=labels) == {key: expected[key]}


def test_batches_add_up_and_do_not_stay():
    # Red for: a metric of the last batch, or rows of one computation in the next.
    probabilities, labels = probability_case("plain", seed=0)
    module = modules.Brier()
    for _ in range(2):
        module.add_batch(predictions=probabilities[:3], references=labels[:3])
        module.add_batch(predictions=probabilities[3:], references=labels[3:])
        assert module.compute() == {"brier": metrics.brier_score(probabilities, labels)}


def test_options_go_through_the_constructor():
    # Red for: an option that is dropped; two of a kind that overwrite each other.
    probabilities, labels = probability_case("plain", seed=0)
    combined = evaluate.combine(
        {
            "wide": modules.CalibrationError(num_bins=3, norm="l2", debiased=True),
            "full": modules.CalibrationError(scheme="quantile"),
            "classes": modules.ClasswiseCalibrationError(num_bins=5, scheme="quantile"),
        }
    )
    assert combined.compute(predictions=probabilities, references=labels) == {
        "wide_ece": metrics.expected_calibration_error(probabilities, labels, num_bins=3, norm="l2", debiased=True),
        "full_ece": metrics.expected_calibration_error(probabilities, labels, scheme="quantile"),
        "classwise_ece": metrics.adaptive_calibration_error(probabilities, labels, num_bins=5),
    }


def test_a_class_may_have_any_number():
    # Red for: references kept in a type that ends at 127 or 32,767.
    probabilities = np.zeros((1, 70_000))
    probabilities[0, [5, 69_999]] = 0.25, 0.75
    assert modules.Accuracy().compute(predictions=probabilities, references=[69_999]) == {"accuracy": 1.0}


def test_two_modules_of_a_kind_work_side_by_side_and_leave_no_file(tmp_path, monkeypatch):
    # Red for: evaluate's locked file of predictions, whose name is the same in every process of a user.
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    one, two = modules.Brier(), modules.Brier()
    one.add(prediction=[1.0, 0.0], reference=0)
    two.add(prediction=[1.0, 0.0], reference=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (one.compute(), two.compute()) == ({"brier": 0.0}, {"brier": 2.0})


def test_bad_rows_are_refused_through_a_module_too():
    # Red for: a wrapper around the checks.
    with pytest.raises(ValueError, match="sum to 1"):
        modules.Brier().compute(predictions=np.ones((2, 2)), references=[0, 1])


def test_without_evaluate_the_functions_work_and_the_modules_say_what_to_install():
    # Red for: metrics that import evaluate, or a bare "No module named 'evaluate'".
    code = (
        "import sys; sys.modules['evaluate'] = None\n"
        "import swag_trainer.metrics\n"
        "try:\n    import swag_trainer.metrics.modules\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "swag-trainer[evaluate]" in done.stdout
