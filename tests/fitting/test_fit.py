"""Posteriors of adapters that were trained without one: TFB and Laplace over the head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from transformers import pipeline
from well_fitted import well_fitted

from swag_trainer import (
    CombinedPosterior,
    MonteCarloPredictor,
    PointPosterior,
    PosteriorFormatError,
    PosteriorMixture,
    Sampling,
    SwagError,
    fit_posterior,
    load_posterior,
    point_posterior,
    tune,
)
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.fitting import head_laplace
from swag_trainer.fitting.tfb import largest, rotated
from swag_trainer.metrics.scores import negative_log_likelihood
from swag_trainer.posterior.design import derived_seed
from swag_trainer.posterior.mean_field import MeanFieldPosterior


@pytest.fixture(scope="module")
def trained(base_folder, texts, tmp_path_factory):
    """A model that was trained by plain Trainer and PEFT, its tokenizer, and labelled examples that it fits well."""
    return well_fitted(base_folder, texts, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def tfb(trained):
    return fit_posterior(trained[0], trained[2], sampling=Sampling(num_samples=6), name="labels of its own", progress=False)


@pytest.fixture(scope="module")
def laplace(trained):
    return fit_posterior(trained[0], trained[2], method="laplace-head", progress=False)


def labels_of(rows):
    return np.array([row["labels"] for row in rows])


def test_tfb_leaves_the_function_at_the_mean_and_uses_the_loss_that_it_may(trained, tfb):
    # Red for: a rotation of A alone, a sigma that does not come from the loss, noise on B or on what belongs to no pair.
    model, _, rows = trained
    plain = torch.cat([model(**{k: torch.tensor([v]) for k, v in row.items() if k != "labels"}).logits for row in rows])
    at_mean = MonteCarloPredictor(model, tfb, scale=0, progress=False).predict(rows).probabilities
    np.testing.assert_allclose(at_mean, plain.detach().double().softmax(-1), atol=1e-6)
    assert all(("lora_A" in key) == bool((value > 0).any()) for key, value in tfb.layout.unflatten(tfb.variance).items())

    def nll(factor):
        predictor = MonteCarloPredictor(model, tfb, num_samples=6, scale=factor, progress=False)
        return negative_log_likelihood(predictor.predict(rows).probabilities, labels_of(rows))

    assert nll(1.0) - nll(0.0) <= 0.003 < nll(1.1) - nll(0.0)
    assert tfb.fit.settings["nll"] == pytest.approx(nll(1.0)) and tfb.fit.dataset == "labels of its own"


def test_the_noise_of_every_layers_update_is_the_same_along_every_direction(trained, tfb):
    # Red for: sigma instead of sigma / d_i, columns in the place of rows.
    draws = tfb.sample(400, seed=0, design="iid")
    a_key = next(key for key in tfb.layout.keys if "lora_A" in key)
    b = tfb.mean[a_key.replace("lora_A", "lora_B")]
    update = torch.einsum("or,sri->soi", b, draws[a_key] - tfb.mean[a_key])
    u = b / b.norm(dim=0)
    along = torch.einsum("or,soi->sri", u, update)
    sigma = tfb.fit.settings["sigma"]
    np.testing.assert_allclose(along.std(dim=(0, 2)), np.full(b.shape[1], sigma), rtol=0.05)


def test_directions_that_b_does_not_have_get_no_noise():
    # Red for: a division by a singular value of 0, fewer outputs than the rank.
    generator = torch.Generator().manual_seed(0)
    for b in (
        torch.randn(5, 3, generator=generator) @ torch.diag(torch.tensor([1.0, 2.0, 0.0])),
        torch.randn(2, 3),
        torch.zeros(5, 3),
    ):
        a = torch.randn(3, 4, generator=generator)
        mean, variance = rotated({"x.lora_A.weight": a, "x.lora_B.weight": b})
        torch.testing.assert_close(mean["x.lora_B.weight"] @ mean["x.lora_A.weight"], b @ a, atol=1e-5, rtol=1e-5)
        rank = int(torch.linalg.matrix_rank(b))
        assert torch.isfinite(variance["x.lora_A.weight"]).all()
        assert int((variance["x.lora_A.weight"] > 0).all(1).sum()) == rank and not variance["x.lora_B.weight"].any()


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("bound", [1e-3, 0.37, 1.0, 900.0])
def test_the_bound_is_found_from_either_side(bound, power):
    # Red for: a search that begins above the bound and stays there, stops too early, or takes many evaluations.
    asked = []
    found, reached = largest(lambda sigma: asked.append(sigma) or (sigma / bound) ** power, 1.0, start=1.0)
    assert reached and found <= bound < found * 1.04 and len(asked) <= 16


def test_a_rise_that_falls_first_is_followed_until_it_rises():
    # Red for: noise that is left small because a little of it helps.
    found, reached = largest(lambda sigma: sigma**2 - 3 * sigma, 1.0, start=0.01)
    assert reached and found <= (3 + 13**0.5) / 2 < found * 1.04


def test_a_bound_that_is_never_reached_is_said():
    # Red for: an endless search.
    found, reached = largest(lambda sigma: -1.0, 1.0, start=1.0)
    assert found == 4.0**15 and not reached


def test_the_laplace_over_the_head_is_that_of_the_formulas(trained, laplace):
    # Red for: a Gauss-Newton matrix without its off-diagonal, a bias left out, the inverse instead of the square root of the precision.
    model, _, rows = trained
    head = model.get_base_model().classifier.modules_to_save["default"]
    seen = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    logits = torch.cat([model(**{k: torch.tensor([v]) for k, v in row.items() if k != "labels"}).logits for row in rows])
    hook.remove()
    f = torch.nn.functional.pad(torch.cat(seen).double(), (0, 1), value=1.0)
    p = logits.detach().double().softmax(-1)
    left = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    right = f.T @ f
    weight = torch.cat([head.weight, head.bias[:, None]], 1).detach().double()
    size = weight.numel()

    def negative_evidence(log_precision):
        tau = 10**log_precision
        precision = torch.kron(left, right) + tau * torch.eye(size, dtype=torch.float64)
        return float(tau * weight.square().sum() / 2 - size / 2 * np.log(tau) + torch.logdet(precision) / 2)

    best = minimize_scalar(negative_evidence, bounds=(-4, 6), method="bounded").x
    assert np.log10(laplace.prior_precision) == pytest.approx(best, abs=0.01)
    covariance = torch.linalg.inv(torch.kron(left, right) + laplace.prior_precision * torch.eye(size, dtype=torch.float64))
    draws = laplace.sample(20_000, seed=0, design="iid")
    key = next(key for key in laplace.layout.keys if key.endswith("weight"))
    matrices = torch.cat([draws[key], draws[key.replace("weight", "bias")][:, :, None]], 2).flatten(1).double()
    torch.testing.assert_close(matrices.mean(0), weight.flatten(), atol=5 * float(covariance.diag().max()) ** 0.5 / 141, rtol=0)
    scale = covariance.diag().sqrt()
    errors = (torch.cov(matrices.T) - covariance) / (scale[:, None] * scale)
    assert errors.abs().max() < 0.05


def test_held_out_examples_choose_the_prior_of_the_head(trained):
    # Red for: the NLL of the mean, of other draws than the predictor's or of the training examples; one prior whatever the loss.
    model, _, rows = trained
    settings, precisions = Sampling(num_samples=6, seed=2), []
    for shift in (0, 1):  # all labels are the model's, or two thirds are others
        other = [{**row, "labels": (row["labels"] + shift * index) % 3} for index, row in enumerate(rows)]
        fitted = fit_posterior(model, rows, method="laplace-head", held_out=other, sampling=settings, progress=False)
        found = fitted.fit.settings
        precisions.append(found["prior_precision"])
        for name, scale in (("nll", None), ("nll_at_mean", 0.0)):
            predictor = MonteCarloPredictor(model, fitted, replace(settings, temperature=1.0, scale=scale), progress=False)
            nll = negative_log_likelihood(predictor.predict(other).probabilities, labels_of(other))
            assert found[name] == pytest.approx(nll, abs=1e-5)
        assert found["held_out_examples"] == len(other)
    assert precisions[1] < precisions[0] / 100 and found["nll"] < found["nll_at_mean"]


def test_a_prior_that_is_too_wide_is_warned_of(trained, monkeypatch):
    # Red for: silence about draws that predict far worse than the mean.
    monkeypatch.setattr(head_laplace, "_MOST_RISE", -1.0)
    with pytest.warns(UserWarning, match=r"raise the NLL of the training examples from .*held_out=\.\.\."):
        fit_posterior(trained[0], trained[2], method="laplace-head", progress=False)


@pytest.mark.parametrize("kind", ["tfb", "laplace"])
def test_a_fitted_posterior_is_tuned_pushed_and_answers_in_the_pipeline(trained, kind, request, texts, tmp_path, hub):
    # Red for: a family that is not registered, tensors or metadata that are lost, an adapter beside it with another function.
    model, tokenizer, rows = trained
    posterior = request.getfixturevalue(kind)
    with pytest.warns(UserWarning):  # on labels that the mean gives there is nothing to win
        tuned = tune(posterior, model, rows, progress=False, sampling=Sampling(num_samples=4))
    tuned.push_to_hub(f"user/{kind}")
    loaded = load_posterior(f"user/{kind}")
    assert type(loaded) is type(tuned) and loaded.digest == tuned.digest and loaded.fit == tuned.fit
    stored = tuned.stored_as("bfloat16")
    expected = MonteCarloPredictor(model, stored, num_samples=4, progress=False).predict(
        [dict(tokenizer(t)) for t in texts[:4]]
    )
    tuned.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    served = pipeline("swag-text-classification", model=str(tmp_path), device="cpu", num_samples=4)(texts[:4], top_k=None)
    scores = [[row["score"] for row in ranks] for ranks in served]
    np.testing.assert_allclose(scores, np.sort(expected.probabilities)[:, ::-1], atol=2e-6)


def test_draws_of_the_head_alone_share_everything_before_it(trained, laplace):
    # Red for: noise below the head.
    assert all("classifier" in key for key in laplace.layout.keys)
    first, second = (laplace.draw(2, seed=0, scale=scale).vectors - laplace.mean_vector() for scale in (1.0, 4.0))
    torch.testing.assert_close(second, 2 * first)
    assert laplace.relative_energy(2.0) == pytest.approx(2 * laplace.relative_energy(1.0))


def test_what_cannot_be_fitted_is_refused(trained, base_folder):
    # Red for: a setting that is ignored, a method that is guessed, an adapter without the part that the method needs.
    model, _, rows = trained
    for message, changes in {
        "method must be one of": {"method": "laplace-lora"},
        "takes no held_out": {"held_out": rows},
        "has the settings": {"prior_precision": 1.0},
        "epsilon is a rise": {"epsilon": 0.0},
        "epsilon is a number, got '0.01'": {"epsilon": "0.01"},
        "prior_precision must be": {"method": "laplace-head", "prior_precision": -1.0},
    }.items():
        with pytest.raises(SwagError, match=message):
            fit_posterior(model, rows, progress=False, **changes)
    wrong = [{**row, "labels": (row["labels"] + 1) % 3} for row in rows]  # noise can only help
    with pytest.raises(SwagError, match="Noise of any size raises the NLL"):
        fit_posterior(model, wrong, progress=False, sampling=Sampling(num_samples=2))
    with pytest.raises(SwagError, match="Fitting to 5 examples"):
        fit_posterior(model, rows[:5])


def test_what_no_fit_can_have_written_is_refused(tfb, laplace):
    # Red for: a check that is left out.
    def read(posterior, tensors=None, **metadata):
        found = {**posterior.tensors(), **(tensors or {})}
        return type(posterior).from_tensors(
            {name: tensor for name, tensor in found.items() if tensor is not None},
            posterior.record,
            posterior.adapter,
            {**posterior.metadata(), **metadata},
            where="the file",
        )

    assert read(tfb).digest == tfb.digest and read(laplace).digest == laplace.digest
    variance = next(name for name in tfb.tensors() if name.startswith("variance/"))
    value = tfb.tensors()[variance]
    for tensors in (
        {variance: -value - 1},
        {variance: value.half()},
        {variance: None},
        {variance: value[:1]},
        {"other/x": value},
    ):
        with pytest.raises(PosteriorFormatError):
            read(tfb, tensors)
    values = laplace.blocks[0].left_values
    for tensors in (
        {"left_values": -values - 1},
        {"left_values": values[:1]},
        {"right_vectors": None},
        {"left_vectors": values.double()},
    ):
        with pytest.raises(PosteriorFormatError):
            read(laplace, tensors)
    for posterior, metadata in ((tfb, {"method": 3}), (tfb, {"unknown": 1}), (laplace, {"settings": {}})):
        with pytest.raises(PosteriorFormatError):
            read(posterior, **metadata)
    with pytest.raises(PosteriorFormatError):
        read(laplace, {name: tensor for name, tensor in tfb.tensors().items() if name.startswith("mean/")})


@pytest.fixture(scope="module")
def combined(tfb_at_model, laplace):
    return CombinedPosterior.of(tfb_at_model, laplace)


@pytest.fixture(scope="module")
def tfb_at_model(trained, tfb, laplace):
    """A Gaussian of all weights around the model's own: its head's variance is one that no draw may show."""
    weights = AdapterWeights(trained[0])
    vector = weights.layout.flatten(weights.read()).clone()
    saved = weights.saved()
    return MeanFieldPosterior(weights.layout, vector, torch.full_like(vector, 0.01), tfb.record, tfb.fit, saved)


def test_a_combination_draws_the_head_from_its_laplace_and_the_rest_from_the_body(combined, tfb_at_model, laplace):
    # Red for: the body's noise in the head, one seed for both parts, a scale that only one of them gets.
    draws, scaled = (combined.sample(4, seed=3, scale=scale) for scale in (1.0, 4.0))
    body = tfb_at_model.sample(4, seed=3)
    for key, drawn in draws.items():
        if key in laplace.layout.keys:
            own = laplace.sample(4, seed=derived_seed(3, "head"))[key]
            assert torch.equal(drawn, own) and not torch.equal(drawn, body[key])
        else:
            assert torch.equal(drawn, body[key])
        torch.testing.assert_close(scaled[key] - combined.mean[key], 2 * (drawn - combined.mean[key]), atol=1e-5, rtol=1e-4)
    assert torch.equal(combined.draw(2, seed=0, scale=0.0).vectors[1], combined.mean_vector())


def test_a_combination_is_saved_and_loaded_with_the_same_draws(combined, tmp_path):
    # Red for: tensors of the parts mixed up, a scale that is lost.
    combined.save_pretrained(tmp_path, dtype="float32")
    loaded = load_posterior(tmp_path)
    assert (type(loaded), loaded.digest, loaded.title) == (CombinedPosterior, combined.digest, "TFB + Laplace (head)")
    assert torch.equal(loaded.draw(3, seed=1).vectors, combined.draw(3, seed=1).vectors)


def test_parts_that_do_not_belong_together_are_refused(combined, tfb_at_model, laplace):
    # Red for: a head around other weights, whose draws answer for a model that nobody trained.
    moved = replace(laplace, vector=laplace.vector + 1)
    for body, head in ((tfb_at_model, tfb_at_model), (combined, laplace), (tfb_at_model, moved)):
        with pytest.raises(SwagError):
            CombinedPosterior.of(body, head)
    metadata, tensors = combined.metadata(), combined.tensors()
    foreign = {"kind": "point", "scale": 0.0, "metadata": {}}
    changes = [{"more": 1}, {"head": None}, {"head": foreign}, {"body": metadata["head"]}]
    for change in changes:
        with pytest.raises(PosteriorFormatError):
            CombinedPosterior.from_tensors(tensors, combined.record, combined.adapter, metadata | change, where="file")
    with pytest.raises(PosteriorFormatError, match="neither body nor head"):
        CombinedPosterior.from_tensors(
            tensors | {"x": torch.zeros(1)}, combined.record, combined.adapter, metadata, where="file"
        )


def test_a_plain_adapter_becomes_a_point_and_two_of_them_an_ensemble(trained, tmp_path):
    # Red for: weights of another moment, a scale that asks for ten equal passes, an adapter whose settings PEFT could not write.
    model, tokenizer, rows = trained
    point = point_posterior(model)
    assert point.record.scale == 0 and point.is_point
    model_weights = AdapterWeights(model)
    assert torch.equal(point.mean_vector(), model_weights.layout.flatten(model_weights.read()))
    point.save_pretrained(tmp_path / "one")
    other = PointPosterior.at(1.1 * point.mean_vector(), point)
    PosteriorMixture.of([load_posterior(tmp_path / "one"), other]).save_pretrained(tmp_path / "both")
    ensemble = load_posterior(tmp_path / "both")
    assert ensemble.title == "Ensemble"
    found = MonteCarloPredictor(model, ensemble, num_samples=2, progress=False).predict(rows, return_draws=True)
    alone = [MonteCarloPredictor(model, each, progress=False).predict(rows).probabilities for each in (point, other)]
    np.testing.assert_allclose(found.draw_probabilities, np.stack(alone), atol=1e-6)
