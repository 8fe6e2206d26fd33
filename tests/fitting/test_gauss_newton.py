"""Kronecker factors of Gauss-Newton matrices, against the dense matrices."""

from __future__ import annotations

import pytest
import torch
from conftest import lora_model
from oracles import gauss_newton
from torch import nn
from transformers import BertTokenizerFast

from swag_trainer import SwagError
from swag_trainer.adapters.weights import private_copy
from swag_trainer.fitting.gauss_newton import _roots, kronecker_factors
from swag_trainer.fitting.lora_laplace import linear_layers


class Repeated(nn.Module):
    """One layer that runs twice, on two positions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)

    def forward(self, inputs):
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(inputs)))).sum(1))


@pytest.fixture(scope="module")
def adapted(base_folder, texts):
    """A LoRA classifier whose matrices are not zero, and two batches, one of them with padding."""
    model = lora_model(base_folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 3)
    tokenizer = BertTokenizerFast.from_pretrained(base_folder)
    batches = [dict(tokenizer(texts[start : start + 3], padding=True, return_tensors="pt")) for start in (0, 3)]
    assert not batches[0]["attention_mask"].all()
    return model, batches


def assert_partial_traces(factors, dense):
    """What a Kronecker product has in common with the matrix that it approximates: both partial traces."""
    scale = float(torch.einsum("oioi->", dense))
    torch.testing.assert_close(factors.left.double() * scale, torch.einsum("oipi->op", dense), rtol=1e-3, atol=1e-5 * scale)
    torch.testing.assert_close(factors.right.double(), torch.einsum("oioj->ij", dense), rtol=1e-3, atol=1e-5 * scale)


def test_factors_of_every_layer_have_the_partial_traces_of_its_gauss_newton_matrix(adapted):
    # Red for: positions of a text taken for independent, padding that counts, a bias left out, probabilities without their outer product,
    # factors of the last batch alone; a model that is changed.
    model, batches = adapted
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    weights = private_copy(model, None, None)
    layers = linear_layers(weights)
    factors = kronecker_factors(layers, batches, lambda batch: weights.model(**batch).logits, seed=0)
    assert len(layers) == 9 and list(factors) == list(layers) == sorted(layers)
    for layer in layers.values():
        layer.requires_grad_(True)
    logits = torch.cat([weights.model(**batch).logits for batch in batches])
    for key, layer in layers.items():
        assert_partial_traces(factors[key], gauss_newton(logits, layer.weight, layer.bias))
    assert all(
        value.equal(before[name][0]) and value.requires_grad == before[name][1] for name, value in model.named_parameters()
    )
    assert not any(module._forward_hooks for module in weights.model.modules())


def test_for_one_example_at_one_position_the_product_is_the_matrix(adapted):
    # Red for: a product with another trace than the matrix.
    model, batches = adapted
    one = {name: value[:1] for name, value in batches[0].items()}
    weights = private_copy(model, None, None)
    layers = linear_layers(weights)
    head = next(key for key in layers if "classifier" in key)
    left, right = kronecker_factors({head: layers[head]}, [one], lambda batch: weights.model(**batch).logits, seed=0)[head]
    layers[head].requires_grad_(True)
    dense = gauss_newton(weights.model(**one).logits, layers[head].weight, layers[head].bias)
    torch.testing.assert_close(torch.einsum("op,ij->oipj", left, right).double(), dense, rtol=1e-3, atol=1e-6)


def test_a_layer_that_runs_twice_has_the_gradient_of_both_calls():
    # Red for: the last call alone, or calls taken for independent.
    torch.manual_seed(0)
    model, inputs = Repeated(), torch.randn(5, 2, 4)
    factors = kronecker_factors({"layer": model.layer}, inputs.split(2), model, seed=0)
    assert_partial_traces(factors["layer"], gauss_newton(model(inputs), model.layer.weight, model.layer.bias))


@pytest.mark.parametrize("count", [2, 7, 16])
def test_directions_give_the_covariance_of_the_classes(count):
    # Red for: directions that are not scaled by C / K, the same directions for every example; exact is what it is with all of them.
    logits = torch.linspace(-2, 2, 7).expand(20_000 if count < 7 else 2, -1)
    roots = _roots(logits, count, torch.Generator().manual_seed(0)).double()
    found = torch.einsum("knc,knd->cd", roots, roots) / len(logits)
    p = logits[0].double().softmax(-1)
    torch.testing.assert_close(found, torch.diag(p) - torch.outer(p, p), rtol=0, atol=5e-3 if count < 7 else 1e-6)


def test_layers_whose_curvature_cannot_be_told_are_refused():
    # Red for: factors of zeros, which would be a posterior as wide as its prior.
    model = Repeated()
    with pytest.raises(SwagError, match="'unused' did not run"):
        kronecker_factors({"unused": nn.Linear(2, 2)}, [torch.randn(2, 2, 4)], model, seed=0)
    with pytest.raises(SwagError, match="for 2 examples"):
        kronecker_factors({"layer": model.layer}, [torch.randn(3, 2, 4)], lambda batch: model(batch)[:2], seed=0)
