"""Laplace's approximation over LoRA and head: the prior, the file, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import lora_model
from transformers import pipeline
from well_fitted import well_fitted

from swag_trainer import MonteCarloPredictor, Sampling, SwagError, fit_posterior, load_posterior, tune
from swag_trainer.fitting.prior_precision import lowest_power
from swag_trainer.metrics.scores import negative_log_likelihood

DRAWS = Sampling(num_samples=6)


@pytest.fixture(scope="module")
def trained(base_folder, texts, tmp_path_factory):
    """An overconfident model, its tokenizer, training examples, and held-out examples, a quarter of which have another label than it gives."""
    model, tokenizer, rows = well_fitted(base_folder, texts, tmp_path_factory.mktemp("plain"))
    with torch.no_grad():
        for parameter in model.get_base_model().classifier.modules_to_save["default"].parameters():
            parameter.mul_(5)
    held_out = [{**row, "labels": (row["labels"] + (index % 4 == 0)) % 3} for index, row in enumerate(rows)]
    return model, tokenizer, rows, held_out


@pytest.fixture(scope="module")
def fitted(trained):
    model, _, rows, held_out = trained
    return fit_posterior(model, rows, method="laplace", held_out=held_out, sampling=DRAWS, name="me/texts", progress=False)


def test_the_prior_is_the_one_of_the_lowest_held_out_loss(trained, fitted):
    # Red for: a loss on the training examples, which has no noise at all as its best; a search that stops on its way; weights that are left out.
    model, _, rows, held_out = trained
    labels = np.array([row["labels"] for row in held_out])

    def nll(posterior, scale=1.0):
        predicted = MonteCarloPredictor(model, posterior, DRAWS, scale=scale, progress=False).predict(held_out)
        return negative_log_likelihood(predicted.probabilities, labels)

    settings = fitted.fit.settings
    assert settings["nll"] == pytest.approx(nll(fitted), rel=1e-4)
    assert (
        settings["nll_at_mean"] == pytest.approx(nll(fitted, 0.0), rel=1e-4) and settings["nll"] < settings["nll_at_mean"] - 0.1
    )
    for factor in (10**-0.25, 10**0.25):
        other = fitted.prior_precision * factor
        assert nll(fit_posterior(model, rows, method="laplace", prior_precision=other, progress=False)) >= settings["nll"]
    assert fitted.layout.keys == tuple(sorted(fitted.adapter.tensors)) and len(fitted.blocks) == 9
    assert (fitted.fit.num_examples, settings["held_out_examples"], fitted.fit.dataset) == (24, 24, "me/texts")
    assert fitted.adapter_holds_mean


def test_it_is_tuned_pushed_loaded_and_answers_in_the_pipeline(trained, fitted, texts, tmp_path, hub):
    # Red for: blocks or settings that a file loses, draws that differ from those of memory.
    model, tokenizer, _, held_out = trained
    tuned = tune(fitted, model, held_out, sampling=DRAWS, progress=False)
    tuned.push_to_hub("user/laplace-lora")
    loaded = load_posterior("user/laplace-lora")
    assert (loaded.digest, loaded.fit, loaded.title) == (tuned.digest, tuned.fit, "Laplace (LoRA)")
    assert torch.equal(loaded.draw(4, seed=1).vectors, tuned.draw(4, seed=1).vectors)
    tuned.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = [dict(tokenizer(text)) for text in texts[:4]]
    expected = MonteCarloPredictor(model, tuned, num_samples=4, progress=False)
    assert expected._logits.sampler.obstacle is None  # packed, as the draws of all others are
    served = pipeline("swag-text-classification", model=str(tmp_path), device="cpu", num_samples=4)(texts[:4], top_k=None)
    scores = [[row["score"] for row in ranks] for ranks in served]
    np.testing.assert_allclose(scores, np.sort(expected.predict(rows).probabilities)[:, ::-1], atol=2e-6)


@pytest.mark.parametrize(("valley", "found"), [(2.5, 2.5), (4.1, 4.0), (3.3, 3.5), (-1.1, -1.0), (9.0, 5.5), (-9.0, -1.5)])
def test_the_search_ends_in_the_valley_or_at_an_end(valley, found):
    # Red for: a step that is skipped, an endless search, a loss that is computed again and again.
    asked = []
    power, loss = lowest_power(lambda power: asked.append(power) or (power - valley) ** 2)
    assert power == found and loss == (found - valley) ** 2 and len(asked) == len(set(asked)) <= 11


@pytest.mark.parametrize(
    ("message", "config", "options"),
    [
        ("has 'base_model.model.bert.embeddings.word_embeddings", {"target_modules": ["query", "word_embeddings"]}, {}),
        ("lora_magnitude_vector", {"use_dora": True}, {}),
        ("needs held_out=", {}, {"prior_precision": None}),
        ("not both", {}, {"held_out": "rows"}),
        ("prior_precision must be finite", {}, {"prior_precision": 0.0}),
        ("Fitting to 3 examples", {}, {"held_out": "few", "prior_precision": None}),
    ],
)
def test_what_it_cannot_be_applied_to_is_refused_before_anything_runs(trained, base_folder, message, config, options):
    # Red for: weights that are left out of the posterior without a word, a prior that nothing chose.
    rows = trained[2]
    given = {"rows": rows, "few": rows[:3]}
    settings = {"prior_precision": 1.0} | {name: given.get(value, value) for name, value in options.items()}
    settings = {name: value for name, value in settings.items() if value is not None}
    model = lora_model(base_folder, **config)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(SwagError, match=message):
        fit_posterior(model, rows, method="laplace", progress=False, **settings)
