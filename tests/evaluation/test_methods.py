import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import lora_model, trainer_for
from scipy.special import softmax
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from swag_trainer import (
    MonteCarloPredictor,
    PointPosterior,
    PosteriorMixture,
    Sampling,
    SwagCallback,
    fit_posterior,
    tune,
)
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.evaluation.identity import identity
from swag_trainer.evaluation.measurement import Measurement, measure
from swag_trainer.evaluation.methods import METHODS, predict_methods
from swag_trainer.evaluation.names import has_temperature
from swag_trainer.metrics.temperature import fit_temperature


@pytest.fixture(scope="module")
def finished(base_folder, texts, tmp_path_factory):
    """(model, posterior) of one run for all tests here, the model's weights moved off the mean so that MAP and SWA differ."""
    tokenizer, swag = BertTokenizerFast.from_pretrained(base_folder), SwagCallback(rank=5)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path_factory.mktemp("run"), callbacks=[swag])
    trainer.train()
    weights = AdapterWeights(trainer.model.eval())
    generator = torch.Generator().manual_seed(0)
    weights.write({key: weight + torch.randn(weight.shape, generator=generator) for key, weight in weights.read().items()})
    return trainer.model, swag.posterior


@pytest.fixture
def moved(finished):
    """The model and posterior of the run; a copy of the model, which a test may change."""
    return copy.deepcopy(finished[0]), finished[1]


def plain_logits(model, rows):
    with torch.inference_mode():
        return np.concatenate([model(**one_row(row)).logits.double().numpy() for row in rows])


def one_row(row):
    return {name: torch.tensor([value]) for name, value in row.items() if name != "labels"}


SAMPLING = Sampling(num_samples=4)


def predictions_of(moved, rows, **options):
    return predict_methods(*moved, rows, sampling=SAMPLING, progress=False, **options)


def labels_of(rows):
    return np.array([row["labels"] for row in rows])


def test_map_is_the_models_own_answer_and_temperature_scaling_divides_its_logits(moved, rows):
    # Red for: the posterior's mean in MAP's name, a temperature fitted on the rows it is judged on, probabilities scaled as logits.
    test, validation = rows[:12], rows[12:]
    answers = predictions_of(moved, test, validation=validation, methods=("MAP", "MAP, temperature"))
    logits = plain_logits(moved[0], test)
    np.testing.assert_allclose(answers["MAP"].probabilities, softmax(logits, axis=1), atol=1e-6)
    temperature = fit_temperature(plain_logits(moved[0], validation), labels_of(validation))
    assert abs(temperature - 1) > 0.01
    np.testing.assert_allclose(answers["MAP, temperature"].probabilities, softmax(logits / temperature, axis=1), atol=1e-5)
    assert answers["MAP"].num_draws == 1 and answers["MAP"].mutual_information is None


def test_swa_and_swag_are_those_of_the_predictor(moved, rows):
    # Red for: SWAG at another scale than the posterior's, SWA at the model's weights, a seed that is not passed on.
    model, posterior = moved[0], moved[1].with_scale(0.3)
    answers = predictions_of((model, posterior), rows, ood=rows[:5], methods=("SWAG", "SWA"))
    assert list(answers) == ["SWAG", "SWA"]
    for name, scale in (("SWAG", 0.3), ("SWA", 0.0)):
        predictor = MonteCarloPredictor(model, posterior, num_samples=4, seed=0, scale=scale)
        np.testing.assert_allclose(answers[name].probabilities, predictor.predict(rows).probabilities, atol=1e-7)
        np.testing.assert_allclose(answers[name].ood_probabilities, predictor.predict(rows[:5]).probabilities, atol=1e-7)
    assert answers["SWAG"].num_draws == 4 and (answers["SWAG"].mutual_information > 0).all()
    assert not np.allclose(answers["SWA"].probabilities, softmax(plain_logits(model, rows), axis=1), atol=1e-4)


def test_dropout_answers_vary_around_map_and_repeat_with_the_seed(moved, rows):
    # Red for: evaluation mode, one mask for all passes, a seed without effect, rows that come back in the order of their lengths.
    answers = [
        predict_methods(*moved, rows, sampling=Sampling(n, seed), methods=["MC dropout"])["MC dropout"]
        for n, seed in ((4, 0), (4, 0), (4, 1), (60, 0))
    ]
    assert (answers[0].mutual_information > 0).all() and answers[0].num_draws == 4
    np.testing.assert_array_equal(answers[0].probabilities, answers[1].probabilities)
    assert not np.array_equal(answers[0].probabilities, answers[2].probabilities)
    # By hand: each row 1,000 times in one batch, every one of them with a mask of its own.
    model = moved[0].train()
    with torch.random.fork_rng(), torch.inference_mode():
        passes = [model(**{name: value.expand(1000, -1) for name, value in one_row(row).items()}).logits for row in rows]
    model.eval()
    slow = torch.stack(passes).double().softmax(-1)
    error = (slow.std(1) / 60**0.5).numpy()
    assert np.abs((answers[3].probabilities - slow.mean(1).numpy()) / error).max() < 5  # of 72, standard errors
    assert np.corrcoef(answers[3].probabilities[:, 0], slow.mean(1)[:, 0])[0, 1] > 0.7  # about 0 for rows in another order


def test_the_model_and_the_random_state_are_left_as_they_were(moved, rows):
    # Red for: draws left in the model, a model switched to training, the process's generator seeded.
    model, posterior = moved
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    predictions_of(moved, rows[:6], ood=rows[6:9], validation=rows[9:])
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


class EagerBar(tqdm):
    """The bar as it looks once the two seconds are over."""

    def __init__(self, *args, delay, **options):
        super().__init__(*args, **options)


@pytest.mark.parametrize("progress", [True, False])
def test_the_passes_of_dropout_show_a_bar_where_one_is_wanted(moved, rows, progress, monkeypatch, capsys):
    # Red for: the slowest method without a sign of life, or a bar although progress=False.
    monkeypatch.setattr("swag_trainer.prediction.predictor.tqdm", EagerBar)
    predict_methods(*moved, rows, sampling=Sampling(2), methods=["MC dropout"], progress=progress)
    assert ("Predicting: 100%" in capsys.readouterr().err) is progress


def test_dropout_with_a_temperature_divides_the_logits_of_every_pass(moved, rows):
    # Red for: a temperature of the averaged probabilities, MAP's temperature, one fitted on the rows it is judged on, other masks.
    test, validation = rows[:12], rows[12:]
    both = predictions_of(moved, test, validation=validation, methods=("MC dropout", "MC dropout, temperature"))
    point = PointPosterior.at(moved[1].layout.flatten(AdapterWeights(moved[0], keys=moved[1].layout.keys).read()), moved[1])
    predictor = MonteCarloPredictor(moved[0], point, num_samples=4, dropout=True, progress=False)
    draws = {
        name: np.log(predictor.predict(part, return_draws=True).draw_probabilities)
        for name, part in (("t", test), ("v", validation))
    }
    temperature = fit_temperature(draws["v"], labels_of(validation), prior_std=0.2)
    assert abs(temperature - 1) > 0.01
    np.testing.assert_allclose(both["MC dropout"].probabilities, softmax(draws["t"], axis=-1).mean(axis=0), atol=1e-6)
    expected = softmax(draws["t"] / temperature, axis=-1).mean(axis=0)
    np.testing.assert_allclose(both["MC dropout, temperature"].probabilities, expected, atol=1e-5)


def without_dropout(model, *, but=()):
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith(but):
            module.p = 0.0
    return model.eval()


def test_a_model_without_dropout_has_no_mc_dropout(base_folder, finished, rows):
    # Red for: S equal passes reported as a method.
    model = without_dropout(lora_model(base_folder, lora_dropout=0.0))
    with pytest.raises(SwagError, match="nothing in this model drops out"):
        predict_methods(model, finished[1], rows, sampling=Sampling(3), methods=["MC dropout"])
    # Red for: an evaluation that ends because one of its default methods does not exist for this model.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predict_methods(model, finished[1], rows[:6], validation=rows[6:], sampling=Sampling(3), progress=False)
    assert list(found) == ["MAP", "MAP, temperature", "SWA", "SWAG"]


def test_dropout_of_an_unsupported_kind_is_left_out_with_the_reason(moved, rows):
    # Red for: the other methods lost with it, or a method that vanishes without a word.
    model, posterior = moved
    model.get_base_model().bert.pooler.activation = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.AlphaDropout(0.2)).eval()
    with pytest.warns(UserWarning, match="Without MC dropout. .*AlphaDropout") as warned:
        found = predictions_of((model, posterior), rows[:6], validation=rows[6:])
    assert list(found) == ["MAP", "MAP, temperature", "SWA", "SWAG"] and len(warned) == 1


def test_attention_drops_out_too(moved, rows):
    # Red for: training mode for the Dropout modules alone; attention asks its own mode, and reads only p from the module.
    model = without_dropout(moved[0], but=("attention.self.dropout",))
    answers = predictions_of((model, moved[1]), rows, methods=["MC dropout"])["MC dropout"]
    assert (answers.mutual_information > 0).all()


def test_batch_statistics_of_a_trained_model_are_left_alone(moved, rows):
    # Red for: a normalisation in training mode, which writes running means that the copy shares with the user's model.
    model, posterior = moved
    base = model.get_base_model()
    norm = torch.nn.BatchNorm1d(32).eval()
    base.bert.pooler.add_module("norm", norm)
    base.bert.pooler.activation = torch.nn.Sequential(torch.nn.Tanh(), norm)
    before = norm.running_mean.clone(), norm.num_batches_tracked.clone()
    predictions_of(moved, rows, methods=["MC dropout"])
    assert torch.equal(norm.running_mean, before[0]) and torch.equal(norm.num_batches_tracked, before[1])


def test_all_methods_are_measured_in_one_go(moved, rows):
    # Red for: answers that do not fit what measures them, a time that is not there.
    answers = predictions_of(moved, rows[:12], ood=rows[12:16], validation=rows[16:])
    assert tuple(answers) == METHODS[:6] == ("MAP", "MAP, temperature", "SWA", "SWAG", "MC dropout", "MC dropout, temperature")
    assert [each.fit_seconds is not None for each in answers.values()] == [has_temperature(name) for name in answers]
    assert all(0 < each.seconds_per_example < 60 for each in answers.values())
    measured = measure(answers, labels_of(rows[:12]), num_resamples=20, posterior=moved[1], sampling=SAMPLING)
    assert tuple(measured.methods) == METHODS[:6]
    assert "auroc_mutual_information" in measured.metrics["SWAG"]
    assert measured.posterior == identity(moved[1])
    assert measured.sampling == Sampling(4, scale=1.0, temperature=1.0, dropout=False, center="mean")
    assert Measurement.from_json(measured.to_json()).sampling == measured.sampling
    assert "MAP, temperature" not in predictions_of(moved, rows[:3])


@pytest.fixture
def fitting(moved, rows):
    """Training examples whose labels are the model's own predictions: noise raises the loss on them."""
    labels = plain_logits(moved[0], rows).argmax(1).tolist()
    return [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("Laplace (head)", "laplace-head"),
        pytest.param("TFB", "tfb", marks=pytest.mark.slow),
        pytest.param("Laplace (LoRA)", "laplace", marks=pytest.mark.slow),
    ],
)
def test_a_posterior_is_fitted_around_map_to_the_training_examples(moved, rows, fitting, name, method):
    # Red for: a fit around the posterior's mean, to the examples to measure, or with SWAG's scale; its time in that of the predictions.
    model, posterior = moved[0], moved[1].with_scale(4.0)
    held_out = {} if method == "tfb" else {"held_out": rows}
    found = predictions_of((model, posterior), rows[:6], train=fitting, validation=rows, methods=[name])[name]
    fitted = fit_posterior(model, fitting, method=method, sampling=SAMPLING, progress=False, **held_out)
    alone = MonteCarloPredictor(model, fitted, num_samples=4, progress=False).predict(rows[:6])
    np.testing.assert_allclose(found.probabilities, alone.probabilities, atol=1e-7)
    assert (found.num_draws, found.num_trainings) == (4, 1) and found.fit_seconds > 0
    own = predict_methods(model, fitted, rows[:6], methods=[name], sampling=SAMPLING, progress=False)[name]
    assert own.fit_seconds is None  # the posterior's own, and not fitted again
    np.testing.assert_allclose(own.probabilities, alone.probabilities, atol=1e-7)


def test_an_ensemble_is_the_final_weights_of_the_members_of_a_mixture(moved, rows):
    # Red for: means in the place of the final weights, the first member alone, a mixture whose trainings are counted once.
    model, swag = moved
    other = replace(swag, gaussian=replace(swag.gaussian, mean=swag.gaussian.mean + 1))
    mixture = PosteriorMixture.of([swag, other], weights=[0.9, 0.1])
    found = predictions_of((model, mixture), rows)
    assert list(found) == ["MAP", "MultiSWA", "MultiSWAG", "MC dropout", "Ensemble"]
    assert [each.num_trainings for each in found.values()] == [1, 2, 2, 1, 2]
    finals = [PointPosterior.at(member.last_snapshot(), member) for member in (swag, other)]
    single = [MonteCarloPredictor(model, final, progress=False).predict(rows).probabilities for final in finals]
    np.testing.assert_allclose(found["Ensemble"].probabilities, np.mean(single, axis=0), atol=1e-6)
    assert np.abs(single[0] - single[1]).max() > 1e-3
    assert torch.equal(mixture.last_snapshot(), swag.last_snapshot())


def test_a_method_that_does_not_apply_is_left_out_with_its_reason_and_refused_where_it_is_named(
    moved, rows, fitting, base_folder
):
    # Red for: a method that vanishes without a reason, that ends the evaluation of the others, or that is ignored although it was named.
    model, posterior = moved
    few, skipped = fitting[:5], {}
    found = predictions_of(moved, rows[:6], train=few, skipped=skipped)
    assert list(found) == ["MAP", "SWA", "SWAG", "MC dropout"]
    reasons = {"MAP, temperature": "validation examples", "Ensemble": "several trainings", "TFB": "Fitting to 5 examples"}
    reasons["Laplace (LoRA)"] = "prior needs validation examples"
    for name, reason in {**reasons, "MC dropout, temperature": "validation examples"}.items():
        assert reason in skipped[name]
    with pytest.warns(UserWarning, match="Without TFB. Fitting to 5 examples"):
        predictions_of(moved, rows[:6], train=few)
    for name, reason in reasons.items():
        with pytest.raises(SwagError, match=reason):
            predictions_of(moved, rows[:6], train=few, methods=["MAP", name])
    with pytest.raises(SwagError, match="training examples with labels"):
        predictions_of(moved, rows[:6], methods=["Laplace (head)"])
    plain = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True).eval()
    for name, reason in (("TFB", "this model has none"), ("SWAG", "need a posterior")):
        with pytest.raises(SwagError, match=reason):
            predict_methods(plain, None, rows[:6], train=fitting, methods=[name])


def test_a_point_estimate_is_compared_under_its_own_name(moved, rows):
    # Red for: a pass at the mean that is called SWAG, or a mean that is counted twice.
    model, posterior = moved
    point = PointPosterior.at(posterior.mean_vector(), posterior)
    predictions = predict_methods(model, point, rows[:6], sampling=SAMPLING, progress=False)
    assert list(predictions) == ["MAP", "point", "MC dropout"]
    swa = predictions_of(moved, rows[:6], methods=["SWA"])["SWA"]
    np.testing.assert_allclose(predictions["point"].probabilities, swa.probabilities, atol=1e-7)
    with pytest.raises(SwagError, match="'point'"):
        predict_methods(model, point, rows, methods=["SWAG"])


def test_a_certain_and_wrong_example_costs_the_same_in_tune_and_in_measure(moved, rows):
    # Red for: a floor of tune's own, 690.8 nats for what an evaluation counts as 36.04.
    model, posterior = moved
    certain = replace(posterior, gaussian=replace(posterior.gaussian, mean=1e4 * posterior.gaussian.mean))
    measured = measure(predict_methods(model, certain, rows, methods=["SWA"], progress=False), labels_of(rows), num_resamples=2)
    assert measured.metrics["SWA"]["nll"].value > 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tuned = tune(certain, model, rows, scales=[1.0], sampling=SAMPLING, progress=False)
    assert tuned.tuning.baselines["SWA"] == pytest.approx(measured.metrics["SWA"]["nll"].value, rel=1e-9)


def test_what_cannot_be_predicted_is_refused(moved, rows, base_folder):
    # Red for: a method that is silently left out, a figure of no rows, a posterior of another adapter answered for by the model.
    for options, message in (
        ({"methods": ["SWAGG"]}, "The methods are"),
        ({"methods": []}, "The methods are"),
        ({"methods": ["MAP, temperature"]}, "needs validation examples"),
        ({"ood": []}, "ood has no examples"),
    ):
        with pytest.raises(SwagError, match=message):
            predict_methods(*moved, rows, **options)
    with pytest.raises(SwagError, match="rows has no examples"):
        predict_methods(*moved, [])
    with pytest.raises(SwagError, match="exclude each other"):
        predict_methods(lora_model(base_folder, num_labels=1), moved[1], rows)
    for method in METHODS:
        with pytest.raises(AdapterMismatchError):
            predict_methods(lora_model(base_folder, r=2), moved[1], rows, validation=rows, methods=[method])
