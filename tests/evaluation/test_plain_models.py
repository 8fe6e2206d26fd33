import copy

import numpy as np
import pytest
import torch
from conftest import lora_model
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from swag_trainer import Sampling, SwagError
from swag_trainer.evaluation.methods import predict_methods
from swag_trainer.evaluation.plain_models import point_estimate
from swag_trainer.metrics.temperature import fit_temperature

PLAIN = ["MAP", "MAP, temperature", "MC dropout", "MC dropout, temperature"]


def plain_logits(model, rows):
    with torch.inference_mode():
        parts = [model(**{name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}).logits for row in rows]
    return torch.cat(parts).double().numpy()


@pytest.fixture(scope="module")
def model(base_folder):
    """A plain classifier of three classes, some of whose weights are frozen."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True).eval()
    model.bert.embeddings.requires_grad_(False)
    with torch.no_grad():
        model.classifier.weight.mul_(40)
    return model


def test_a_plain_classifier_has_four_methods_and_map_is_its_own_prediction(model, rows):
    # Red for: an adapter that adds something, a temperature fitted on the rows it is judged on, passes of dropout that are all alike.
    test, validation = rows[:12], rows[12:]
    found = predict_methods(model, None, test, validation=validation, ood=validation[:5], sampling=Sampling(6), progress=False)
    assert list(found) == PLAIN
    np.testing.assert_allclose(found["MAP"].probabilities, softmax(plain_logits(model, test), axis=1), atol=1e-6)
    temperature = fit_temperature(plain_logits(model, validation), [row["labels"] for row in validation])
    expected = softmax(plain_logits(model, test) / temperature, axis=1)
    np.testing.assert_allclose(found["MAP, temperature"].probabilities, expected, atol=1e-5)
    assert (found["MC dropout"].mutual_information > 0).all() and found["MC dropout"].num_draws == 6
    assert found["MC dropout"].ood_probabilities.shape == (5, 3)


def test_passes_of_dropout_are_those_of_the_model_in_training_mode(model, rows):
    # Red for: dropout of the neutral adapter alone, or masks at another rate than the model's.
    found = predict_methods(model, None, rows[:4], methods=["MC dropout"], sampling=Sampling(300), progress=False)["MC dropout"]
    trained = copy.deepcopy(model).train()
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(1)
        slow = [
            trained(**{name: torch.tensor([row[name]]).expand(1000, -1) for name in ("input_ids", "attention_mask")}).logits
            for row in rows[:4]
        ]
    slow = torch.stack(slow).double().softmax(-1)
    error = (slow.std(1) * (1 / 300 + 1 / 1000) ** 0.5).numpy()
    assert np.abs((found.probabilities - slow.mean(1).numpy()) / error).max() < 4.5


def test_the_plain_model_is_left_as_it_was(model, rows):
    # Red for: an adapter left in the model, its parameters frozen, or its mode changed.
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict_methods(model, None, rows[:3], sampling=Sampling(2), progress=False)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert [(name, type(module), module.training) for name, module in model.named_modules()] == modules
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    copied, _ = point_estimate(model)
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert (
        sum(parameter.numel() for parameter in copied.parameters() if parameter.data_ptr() not in shared) < 100
    )  # no second model


def test_a_plain_adapter_needs_no_posterior(base_folder, rows):
    # Red for: an adapter that was loaded for inference, none of whose weights train, refused for that.
    model = lora_model(base_folder).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = predict_methods(model, None, rows, sampling=Sampling(3), progress=False)
    assert list(found) == ["MAP", "MC dropout"]
    np.testing.assert_allclose(found["MAP"].probabilities, softmax(plain_logits(model, rows), axis=1), atol=1e-6)


def test_what_a_plain_model_lacks_is_refused(model, base_folder, rows):
    # Red for: a SWA or SWAG made up for a model without a posterior, or a regression measured as a classifier.
    for method in ("SWA", "SWAG"):
        with pytest.raises(SwagError, match="need a posterior, and this model has none"):
            predict_methods(model, None, rows, methods=[method])
    regression = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1, ignore_mismatched_sizes=True)
    with pytest.raises(SwagError, match="exclude each other"):
        predict_methods(regression, None, rows)


def test_a_decoder_without_linear_layers_but_its_head_is_predicted_too():
    # Red for: a neutral adapter that knows the names of BERT only.
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=3, pad_token_id=0)
    model = GPT2ForSequenceClassification(config).eval()
    rows = [{"input_ids": [5, 6, 7 + index], "attention_mask": [1, 1, 1]} for index in range(6)]
    found = predict_methods(model, None, rows, sampling=Sampling(3), progress=False)
    np.testing.assert_allclose(found["MAP"].probabilities, softmax(plain_logits(model, rows), axis=1), atol=1e-6)
    assert (found["MC dropout"].mutual_information > 0).all()
