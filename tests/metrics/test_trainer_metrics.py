from types import SimpleNamespace

import numpy as np
import pytest
from conftest import lora_model, trainer_for
from probability_cases import probability_cases
from scipy.special import softmax

from swag_trainer import metrics
from swag_trainer.metrics.trainer import classification_metrics, compute_metrics


def expected(probabilities, labels, num_bins=15):
    return {
        "accuracy": metrics.accuracy(probabilities, labels),
        "macro_f1": metrics.macro_f1(probabilities, labels),
        "matthews_correlation": metrics.matthews_correlation(probabilities, labels),
        "nll": metrics.negative_log_likelihood(probabilities, labels),
        "ece": metrics.expected_calibration_error(probabilities, labels, num_bins=num_bins),
        "brier": metrics.brier_score(probabilities, labels),
    }


def test_a_trainer_reports_the_metrics_of_its_own_predictions(base_folder, rows, tokenizer, tmp_path):
    # Red for: logits taken for probabilities, or arguments that a Trainer does not give.
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, eval_rows=rows)
    trainer.compute_metrics = compute_metrics
    reported = trainer.evaluate()
    answers = trainer.predict(rows)
    probabilities = softmax(answers.predictions.astype(np.float64), axis=1)
    for name, value in expected(probabilities, answers.label_ids).items():
        assert reported[f"eval_{name}"] == pytest.approx(value, abs=1e-9)
    assert reported["eval_nll"] == pytest.approx(reported["eval_loss"], abs=1e-5)


def test_options_are_those_of_the_maker():
    # Red for: a softmax of probabilities, bins that stay 15, hidden states taken for logits.
    probabilities = np.array([[0.7, 0.3], [0.45, 0.55], [0.9, 0.1]])
    labels = np.array([0, 1, 1])
    compute = classification_metrics(from_logits=False, num_bins=2)
    assert compute(SimpleNamespace(predictions=probabilities, label_ids=labels)) == expected(probabilities, labels, 2)
    logits = SimpleNamespace(predictions=(np.log(probabilities), "hidden states"), label_ids=labels)
    assert compute_metrics(logits)["nll"] == pytest.approx(metrics.negative_log_likelihood(probabilities, labels))


def test_a_thousand_predictions_have_the_figures_of_the_functions():
    # Red for: a figure under another's name, a softmax that reaches over the rows, float32 on the way.
    for probabilities, labels in probability_cases(1000, inside=True):
        found = compute_metrics(SimpleNamespace(predictions=np.log(probabilities) + 3, label_ids=labels))
        for name, value in expected(probabilities, labels).items():
            # Rows that tie as probabilities need not tie as logits: an answer, and the bin on a border, may be another one.
            if name in ("nll", "brier"):
                assert found[name] == pytest.approx(value, abs=1e-9)
        assert classification_metrics(from_logits=False)(
            SimpleNamespace(predictions=probabilities, label_ids=labels)
        ) == expected(probabilities, labels)


def test_predictions_that_do_not_fit_are_refused():
    # Red for: token-level logits averaged into a figure.
    with pytest.raises(ValueError, match="Predictions"):
        compute_metrics(SimpleNamespace(predictions=np.zeros((2, 3, 4)), label_ids=np.zeros((2, 3))))
    with pytest.raises(ValueError, match="Predictions must be finite"):
        compute_metrics(SimpleNamespace(predictions=np.full((1, 2), np.nan), label_ids=np.array([0])))
