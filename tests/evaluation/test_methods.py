import json

import numpy as np
import pytest
import torch
from conftest import lora_model
from scipy.special import softmax
from tqdm.auto import tqdm

from swag_trainer import MonteCarloPredictor
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.evaluation.measurement import measure
from swag_trainer.evaluation.methods import METHODS, labels_of, predict_methods
from swag_trainer.metrics.temperature import fit_temperature


@pytest.fixture
def moved(trained):
    """(model, posterior) of a finished run, the model's weights moved off the mean so that MAP and SWA differ, and rows differ."""
    trainer, swag = trained
    weights = AdapterWeights(trainer.model)
    generator = torch.Generator().manual_seed(0)
    weights.write({key: weight + torch.randn(weight.shape, generator=generator) for key, weight in weights.read().items()})
    return trainer.model, swag.posterior


def plain_logits(model, rows):
    with torch.inference_mode():
        return np.concatenate([model(**one_row(row)).logits.double().numpy() for row in rows])


def one_row(row):
    return {name: torch.tensor([value]) for name, value in row.items() if name != "labels"}


def answers_of(moved, rows, **options):
    return predict_methods(*moved, rows, num_samples=4, progress=False, **options)


def test_map_is_the_models_own_answer_and_temperature_scaling_divides_its_logits(moved, rows):
    # Red for: the posterior's mean in MAP's name, a temperature fitted on the rows it is judged on, probabilities scaled as logits.
    test, validation = rows[:12], rows[12:]
    answers = answers_of(moved, test, validation=validation, methods=("MAP", "MAP, temperature"))
    logits = plain_logits(moved[0], test)
    np.testing.assert_allclose(answers["MAP"].probabilities, softmax(logits, axis=1), atol=1e-6)
    temperature = fit_temperature(plain_logits(moved[0], validation), labels_of(validation))
    assert abs(temperature - 1) > 0.01
    np.testing.assert_allclose(answers["MAP, temperature"].probabilities, softmax(logits / temperature, axis=1), atol=1e-5)
    assert answers["MAP"].num_draws == 1 and answers["MAP"].mutual_information is None


def test_swa_and_swag_are_those_of_the_predictor(moved, rows):
    # Red for: SWAG at another scale than the posterior's, SWA at the model's weights, a seed that is not passed on.
    model, posterior = moved[0], moved[1].with_scale(0.3)
    answers = answers_of((model, posterior), rows, foreign=rows[:5], seed=3, methods=("SWAG", "SWA"))
    assert list(answers) == ["SWAG", "SWA"]
    for name, scale in (("SWAG", 0.3), ("SWA", 0.0)):
        predictor = MonteCarloPredictor(model, posterior, num_samples=4, seed=3, scale=scale)
        np.testing.assert_allclose(answers[name].probabilities, predictor.predict(rows).probabilities, atol=1e-7)
        np.testing.assert_allclose(answers[name].foreign_probabilities, predictor.predict(rows[:5]).probabilities, atol=1e-7)
    assert answers["SWAG"].num_draws == 4 and (answers["SWAG"].mutual_information > 0).all()
    assert not np.allclose(answers["SWA"].probabilities, softmax(plain_logits(model, rows), axis=1), atol=1e-4)


def test_dropout_answers_vary_around_map_and_repeat_with_the_seed(moved, rows):
    # Red for: evaluation mode, one mask for all passes, a seed without effect, rows that come back in the order of their lengths.
    answers = [
        predict_methods(*moved, rows, num_samples=n, seed=seed, methods=["MC dropout"])["MC dropout"]
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
    answers_of(moved, rows[:6], foreign=rows[6:9], validation=rows[9:])
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
    predict_methods(*moved, rows, num_samples=2, methods=["MC dropout"], progress=progress)
    assert ("Predicting: 100%" in capsys.readouterr().err) is progress


def without_dropout(model, *, but=()):
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith(but):
            module.p = 0.0
    return model.eval()


def test_a_model_without_dropout_has_no_mc_dropout(base_folder, trained, rows):
    # Red for: S equal passes reported as a method.
    model = without_dropout(lora_model(base_folder, lora_dropout=0.0))
    with pytest.raises(SwagError, match="nothing in this model drops out"):
        predict_methods(model, trained[1].posterior, rows, num_samples=3, methods=["MC dropout"])


def test_attention_drops_out_too(moved, rows):
    # Red for: training mode for the Dropout modules alone; attention asks its own mode, and reads only p from the module.
    model = without_dropout(moved[0], but=("attention.self.dropout",))
    answers = answers_of((model, moved[1]), rows, methods=["MC dropout"])["MC dropout"]
    assert (answers.mutual_information > 0).all()


def test_batch_statistics_of_a_trained_model_are_left_alone(moved, rows):
    # Red for: a normalisation in training mode, which writes running means that the copy shares with the user's model.
    model, posterior = moved
    base = model.get_base_model()
    norm = torch.nn.BatchNorm1d(32).eval()
    base.bert.pooler.add_module("norm", norm)
    base.bert.pooler.activation = torch.nn.Sequential(torch.nn.Tanh(), norm)
    before = norm.running_mean.clone(), norm.num_batches_tracked.clone()
    answers_of(moved, rows, methods=["MC dropout"])
    assert torch.equal(norm.running_mean, before[0]) and torch.equal(norm.num_batches_tracked, before[1])


def test_all_methods_are_measured_in_one_go(moved, rows):
    # Red for: answers that do not fit what measures them, a time that is not there.
    answers = answers_of(moved, rows[:12], foreign=rows[12:16], validation=rows[16:])
    assert tuple(answers) == METHODS
    assert all(0 < each.seconds_per_row < 60 for each in answers.values())
    document = measure(answers, labels_of(rows[:12]), num_resamples=20).as_json()
    assert tuple(document["methods"]) == METHODS
    assert "auroc_mutual_information" in document["methods"]["SWAG"]["figures"]
    json.dumps(document, allow_nan=False)
    assert "MAP, temperature" not in answers_of(moved, rows[:3])


def test_labels_are_found_under_the_names_a_trainer_knows():
    # Red for: one spelling only, or a row without a label that counts as class 0.
    assert labels_of([{"labels": 2}, {"label": torch.tensor(1)}, {"label_ids": 0}]).tolist() == [2, 1, 0]
    with pytest.raises(SwagError, match="Row 1 has no label"):
        labels_of([{"labels": 2}, {"input_ids": [1]}])


def test_what_cannot_be_answered_is_refused(moved, rows, base_folder):
    # Red for: a method that is silently left out, a figure of no rows, a posterior of another adapter answered for by the model.
    for options, message in (
        ({"methods": ["SWAGG"]}, "The methods are"),
        ({"methods": []}, "The methods are"),
        ({"methods": ["MAP, temperature"]}, "needs validation rows"),
        ({"foreign": []}, "foreign has no rows"),
        ({"num_samples": 0}, "num_samples"),
    ):
        with pytest.raises(SwagError, match=message):
            predict_methods(*moved, rows, **options)
    with pytest.raises(SwagError, match="rows has no rows"):
        predict_methods(*moved, [])
    with pytest.raises(SwagError, match="exclude each other"):
        predict_methods(lora_model(base_folder, num_labels=1), moved[1], rows)
    for method in METHODS:
        with pytest.raises(AdapterMismatchError):
            predict_methods(lora_model(base_folder, r=2), moved[1], rows, validation=rows, methods=[method])
