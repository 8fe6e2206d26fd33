"""Trainer.predict and Trainer.evaluate with a posterior, against MonteCarloPredictor and figures computed from its answers."""

import distributed_prediction_worker as worker
import numpy as np
import pytest
import torch
from conftest import lora_model
from scipy.special import expit, softmax
from torchrun import two_processes
from transformers import Trainer, TrainingArguments

from swag_trainer import AdapterMismatchError, MonteCarloPredictor, SwagError, SwagPosterior
from swag_trainer.prediction.predictive import Predictive, RegressionPredictive
from swag_trainer.prediction.trainer_evaluation import as_predictions, loss_of


@pytest.fixture(scope="module")
def setup(base_folder, texts, tmp_path_factory):
    return {**worker.setup_in(tmp_path_factory.mktemp("posterior"), base_folder, texts), "processes": 1}


@pytest.fixture(scope="module")
def posterior(setup):
    return SwagPosterior.from_pretrained(setup["posterior"])


@pytest.fixture(scope="module")
def expected(setup):
    return worker.a_predictor(setup).predict(setup["rows"])


def negative_log_likelihood(probabilities, rows):
    return -np.mean([np.log(probabilities[index, row["labels"]]) for index, row in enumerate(rows)])


def assert_probabilities(predictions, expected):
    """Predictions are log-probabilities, whose softmax changes nothing. In batches padded together float32 sums differ by 1e-7."""
    np.testing.assert_allclose(np.exp(predictions), expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(softmax(predictions, axis=1), expected, rtol=0, atol=2e-6)


def test_a_trainer_predicts_the_averaged_probabilities_and_their_likelihood(setup, posterior, expected, tmp_path):
    # Red for: the model's own logits, the mean of the logits, new draws for each batch, a loss of the mean weights, float64, which
    # some devices lack.
    trainer = worker.a_trainer(tmp_path, setup)
    trainer.use_posterior(posterior)
    output = trainer.predict(setup["rows"])
    assert_probabilities(output.predictions, expected.probabilities)
    assert output.predictions.dtype == np.float32
    assert output.label_ids.tolist() == [row["labels"] for row in setup["rows"]]
    likelihood = negative_log_likelihood(expected.probabilities, setup["rows"])
    assert output.metrics["test_loss"] == pytest.approx(likelihood, abs=1e-5)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(likelihood, abs=1e-5)
    assert metrics["eval_nll"] == pytest.approx(likelihood, abs=1e-5)
    right = expected.probabilities.argmax(1) == [row["labels"] for row in setup["rows"]]
    assert metrics["eval_accuracy"] == pytest.approx(right.mean())
    with torch.no_grad():  # and not what the model itself says
        assert abs(Trainer.predict(worker.a_trainer(tmp_path, setup), setup["rows"]).metrics["test_loss"] - likelihood) > 1e-2


def test_settings_reach_the_predictor(setup, posterior, tmp_path):
    # Red for: settings that are kept and forgotten.
    settings = {"num_samples": 3, "seed": 7, "scale": 4.0, "temperature": 2.0}
    trainer = worker.a_trainer(tmp_path, setup)
    trainer.use_posterior(posterior, **settings)
    expected = worker.a_predictor(setup, **settings).predict(setup["rows"]).probabilities
    assert_probabilities(trainer.predict(setup["rows"]).predictions, expected)
    with pytest.raises(SwagError, match="num_draws"):
        trainer.use_posterior(posterior, num_draws=3)


def test_without_a_posterior_it_is_the_trainer_it_was(setup, posterior, tmp_path):
    # Red for: a mixin that answers otherwise before it was asked to, or after it was asked to stop.
    plain = Trainer(model=worker.a_model(setup), args=worker.a_trainer(tmp_path, setup).args)
    plain.data_collator = worker.a_trainer(tmp_path, setup).data_collator
    expected = plain.predict(setup["rows"]).predictions
    trainer = worker.a_trainer(tmp_path, setup)
    assert np.array_equal(trainer.predict(setup["rows"]).predictions, expected)
    trainer.use_posterior(posterior)
    trainer.predict(setup["rows"])
    trainer.use_posterior(None)
    assert np.array_equal(trainer.predict(setup["rows"]).predictions, expected)


def test_rows_keep_their_order_when_batches_are_grouped_by_length(setup, posterior, expected, tmp_path):
    # Red for: the Trainer's own sampler, which groups rows by length to predict them too. If the first assertion fails, transformers
    # has changed that, and the override can go.
    trainer = worker.a_trainer(tmp_path, setup, train_sampling_strategy="group_by_length")
    assert list(Trainer._get_eval_sampler(trainer, setup["rows"])) != list(range(24))
    trainer.use_posterior(posterior)
    output = trainer.predict(setup["rows"])
    assert output.label_ids.tolist() == [row["labels"] for row in setup["rows"]]
    assert_probabilities(output.predictions, expected.probabilities)


def test_one_set_of_draws_serves_a_loop_and_the_next_loop_sees_the_model_as_it_is_then(setup, posterior, tmp_path, monkeypatch):
    # Red for: a predictor for each batch; one that outlives a base that was changed in place, or put in the place of the old one.
    made, init = [], MonteCarloPredictor.__init__
    monkeypatch.setattr(MonteCarloPredictor, "__init__", lambda *a, **k: made.append(1) or init(*a, **k))
    trainer = worker.a_trainer(tmp_path, setup)
    trainer.use_posterior(posterior)
    made.clear()
    before = trainer.predict(setup["rows"]).predictions
    assert len(made) == 1
    dense = trainer.model.get_base_model().bert.pooler.dense
    with torch.no_grad():
        dense.weight.mul_(-1)
    changed = trainer.predict(setup["rows"]).predictions
    assert np.abs(changed - before).max() > 1e-2
    dense.weight = torch.nn.Parameter(-dense.weight.detach(), requires_grad=False)
    assert np.array_equal(trainer.predict(setup["rows"]).predictions, before)
    trainer.model.merge_adapter()
    with pytest.raises(SwagError, match="merged"):
        trainer.predict(setup["rows"])


def test_evaluations_during_training_answer_with_the_posterior_and_do_not_disturb_the_training(
    setup, posterior, expected, base_folder, tmp_path
):
    # Red for: draws or an evaluation mode left in the model that trains; an evaluation of the weights of the moment.
    def run(used):
        arguments = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "learning_rate": 1e-2}
        made = worker.a_trainer(tmp_path, setup, **arguments)
        trainer = worker.PosteriorTrainer(
            model=lora_model(setup["base"]),
            args=made.args,
            train_dataset=setup["rows"],
            eval_dataset=setup["rows"],
            processing_class=made.processing_class,
        )
        trainer.use_posterior(used)
        trainer.train()
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        return losses, {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}

    likelihood = negative_log_likelihood(expected.probabilities, setup["rows"])
    losses, weights = run(posterior)
    assert losses == pytest.approx([likelihood] * 2, abs=1e-5)
    plain_losses, plain_weights = run(None)
    assert plain_losses[0] != plain_losses[1]
    assert all(torch.equal(weights[name], weight) for name, weight in plain_weights.items())


def test_bfloat16_evaluation_uses_the_draws_too(setup, posterior, expected, tmp_path):
    # Red for: a copy whose forward, which accelerate wraps for bfloat16, is still the model's own: every draw then answers alike.
    trainer = worker.a_trainer(tmp_path, setup, bf16=True)
    trainer.use_posterior(posterior)
    np.testing.assert_allclose(np.exp(trainer.predict(setup["rows"]).predictions), expected.probabilities, rtol=0, atol=3e-2)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_several_labels_and_regressions_have_the_loss_of_their_average(setup, posterior, tmp_path, kind):
    # Red for: log-probabilities whose sigmoid is not the average, or a cross-entropy of numbers that are no classes.
    rows = [{**row, "labels": [float(row["labels"] == place) for place in range(3)]} for row in setup["rows"]]
    trainer = worker.a_trainer(tmp_path, setup)
    trainer.compute_metrics = None
    trainer.model.get_base_model().config.problem_type = kind
    trainer.use_posterior(posterior)
    answer = MonteCarloPredictor(trainer.model, posterior, progress=False).predict(rows)
    output, labels = trainer.predict(rows), np.array([row["labels"] for row in rows])
    if kind == "regression":
        assert isinstance(answer, RegressionPredictive)
        np.testing.assert_allclose(output.predictions, answer.mean, rtol=0, atol=1e-5)
        assert output.metrics["test_loss"] == pytest.approx(((answer.mean - labels) ** 2).mean(), rel=1e-4)
    else:
        np.testing.assert_allclose(expit(output.predictions), answer.probabilities, rtol=0, atol=2e-6)
        likelihood = np.where(labels == 1, answer.probabilities, 1 - answer.probabilities)
        assert output.metrics["test_loss"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-4)


def test_certain_answers_stay_finite():
    # Red for: log(0), which a mean or a softmax makes NaN of.
    certain = Predictive.from_logits(torch.tensor([[[2000.0, 0.0]]]), "softmax")
    assert as_predictions(certain, "softmax").tolist() == [[0.0, pytest.approx(-708.4, abs=0.1)]]
    several = Predictive.from_logits(torch.tensor([[[2000.0, -2000.0]]]), "sigmoid")
    assert np.isfinite(as_predictions(several, "sigmoid").astype(np.float32)).all()


def test_a_loss_is_the_mean_over_the_rows_that_have_a_label():
    # Red for: -100 taken for a class or counted as a row, labels that must be flat, shapes that broadcast, whole numbers refused.
    logs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]).log()
    expected = -(np.log(0.7) + np.log(0.4)) / 2
    for labels in (torch.tensor([0, -100, 2]), torch.tensor([[0], [-100], [2]])):
        assert loss_of(logs, labels, "softmax").item() == pytest.approx(expected, abs=1e-6)
    outputs, targets = torch.tensor([[1.0], [3.0], [2.0]]), [1, 3, 4]
    for labels in (torch.tensor(targets), torch.tensor(targets)[:, None], torch.tensor(targets).float()):
        assert loss_of(outputs, labels, "identity").item() == pytest.approx((0 + 0 + 4) / 3)
    odds = torch.log(torch.tensor([[3.0], [1 / 3], [1.0]]))  # probabilities 3/4, 1/4, 1/2
    expected = -(np.log(0.75) + np.log(0.25) + np.log(0.5)) / 3
    for labels in (torch.tensor([1, 1, 0]), torch.tensor([[1], [1], [0]])):
        assert loss_of(odds, labels, "sigmoid").item() == pytest.approx(expected, abs=1e-6)


def test_a_step_gives_what_it_is_asked_for(setup, posterior, expected, tmp_path):
    # Red for: predictions gathered though the loss alone was asked for, columns that a plain step was to leave out, labels of None
    # taken for labels.
    trainer = worker.a_trainer(tmp_path, setup)
    batch = trainer.data_collator(setup["rows"][:4])
    assert trainer.prediction_step(trainer.model, dict(batch), False, ignore_keys=["logits"])[1] == ()
    trainer.use_posterior(posterior)
    loss, predictions, labels = trainer.prediction_step(trainer.model, dict(batch), False)
    assert_probabilities(predictions.numpy(), expected.probabilities[:4])
    assert torch.equal(labels, batch["labels"])
    assert trainer.prediction_step(trainer.model, dict(batch), True) == (loss, None, None)
    loss, predictions, labels = trainer.prediction_step(trainer.model, {**batch, "labels": None}, False)
    assert loss is None and labels is None
    assert_probabilities(predictions.numpy(), expected.probabilities[:4])


def test_a_model_that_is_wrapped_is_answered_for_all_the_same(setup, posterior, expected, tmp_path):
    # Red for: the wrapper of several devices taken for a model without an adapter, by the Trainer and by what finds adapters.
    trainer = worker.a_trainer(tmp_path, setup)
    trainer.model = torch.nn.DataParallel(trainer.model)
    trainer.use_posterior(posterior)
    batch = trainer.data_collator(setup["rows"][:4])
    assert_probabilities(trainer.prediction_step(trainer.model, batch, False)[1].numpy(), expected.probabilities[:4])


def test_one_output_has_to_be_named_and_one_kind_of_label_is_enough(setup, posterior, tmp_path):
    # Red for: a squared error of what a pipeline answers as a yes or no; the first of two labels measured, the other one forgotten.
    trainer = worker.a_trainer(tmp_path, setup)
    config = trainer.model.get_base_model().config
    config.num_labels, config.problem_type = 1, None
    with pytest.raises(SwagError, match="one output.*problem_type"):
        trainer.use_posterior(posterior)
    assert trainer._posterior is None
    for kind in ("regression", "multi_label_classification"):
        config.problem_type = kind
        trainer.use_posterior(posterior)
    config.num_labels, config.problem_type = 3, None
    trainer.use_posterior(posterior)
    trainer.label_names = ["start_positions", "end_positions"]
    batch = {**trainer.data_collator(setup["rows"][:2]), "start_positions": torch.zeros(2), "end_positions": torch.ones(2)}
    with pytest.raises(SwagError, match="one kind of label.*end_positions"):
        trainer.prediction_step(trainer.model, batch, False)


def test_rows_without_labels_have_predictions_and_no_loss(setup, posterior, expected, tmp_path):
    # Red for: a loss that asks for labels.
    trainer = worker.a_trainer(tmp_path, setup)
    trainer.use_posterior(posterior)
    output = trainer.predict([{name: value for name, value in row.items() if name != "labels"} for row in setup["rows"]])
    assert_probabilities(output.predictions, expected.probabilities)
    assert output.label_ids is None and "test_loss" not in output.metrics


def test_what_cannot_be_answered_is_refused_when_it_is_asked_for(setup, posterior, tmp_path, base_folder):
    # Red for: an error in the first batch of an evaluation that training has led to, or a loss of numbers that mean something else.
    trainer = worker.a_trainer(tmp_path, setup)
    with pytest.raises(SwagError, match="got 0"):
        trainer.use_posterior(posterior, num_samples=0)
    trainer.use_posterior(posterior)
    with pytest.raises(SwagError, match="multi_label_classification"):
        trainer.predict([{**row, "labels": [0.0, 1.0, 0.0]} for row in setup["rows"]])
    other = worker.PosteriorTrainer(model=lora_model(base_folder, r=8), args=TrainingArguments(str(tmp_path), report_to=[]))
    with pytest.raises(AdapterMismatchError):
        other.use_posterior(posterior)


@pytest.mark.slow
def test_two_processes_predict_and_evaluate_as_one_does(setup, tmp_path):
    # Red for: rows of one process only, rows that fill up the last batch counted twice, draws that differ from process to process.
    single = worker.trainers(tmp_path / "single", setup)
    two = {**setup, "processes": 2}
    for result in two_processes(
        "prediction/distributed_prediction_worker.py", "trainers", folder=tmp_path / "two", seconds=240, **two
    ):
        for name in ("random 24", "random 21", "group_by_length 24", "group_by_length 21"):
            found, expected = result["trainers"][name], single[name]
            assert found["labels"].tolist() == expected["labels"].tolist()
            torch.testing.assert_close(found["predictions"], expected["predictions"], rtol=0, atol=2e-5)
            for metric in ("test_nll", "test_accuracy", "test_ece"):
                assert found["metrics"][metric] == pytest.approx(expected["metrics"][metric], abs=1e-5)
        assert result["trainers"]["evaluate"]["eval_loss"] == pytest.approx(single["evaluate"]["eval_loss"], abs=1e-5)
