"""The linearised posterior, against dense formulas, against finite differences, and against very many draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import lora_model
from lively import short_run
from oracles import dense_covariance
from peft import LoraConfig, get_peft_model

from swag_trainer import MonteCarloPredictor, SwagError, fit_posterior
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.prediction.linearized import LinearizedSampler, logit_noise, symmetric_root
from swag_trainer.prediction.sequential import SequentialSampler
from swag_trainer.tasks import task_named


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    """(model, posterior whose answers differ from row to row, tokenizer)."""
    return short_run(base_folder, texts, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def batch(run, texts):
    return dict(run[2](texts[:6], padding=True, return_tensors="pt"))


def head_only(base_folder):
    """A model that is linear in what is drawn: the weight and the bias of its classifier."""
    model = lora_model(base_folder).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("modules_to_save" in name)
    return AdapterWeights(model)


def some_gaussian(size, rank, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rank + 2, size, generator=generator)
    return LowRankGaussian(0.3 * noise[0], 0.2 * noise[1] ** 2, 0.3 * noise[2:])


def sampler(weights, gaussian, *, scale=1.0, seed=0):
    return LinearizedSampler(weights, gaussian.mean, gaussian.quadratic_form(scale), task=task_named(None), seed=seed)


def features_of(weights, batch):
    """What the classifier multiplies with its weight. Shape (B, H), float64."""
    seen = []
    classifier = weights.model.get_base_model().classifier.modules_to_save["default"]
    handle = classifier.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach().double()))
    with torch.no_grad():
        weights.model(**batch)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("rank", [0, 4])
def test_logits_of_a_linear_model_have_the_mean_and_covariance_of_the_dense_formula(base_folder, batch, rank):
    # Red for: a lost one-half, K instead of K - 1, the scale of a standard deviation, the order of the weights, a derivative of
    # another row or class, the one-half of the low-rank formula at rank 0.
    weights = head_only(base_folder)
    gaussian = some_gaussian(weights.layout.size, rank)
    mean, covariance = sampler(weights, gaussian, scale=1.7).gaussian(batch)

    features = features_of(weights, batch)
    jacobian = torch.zeros(6, 3, weights.layout.size, dtype=torch.float64)
    for row in range(6):
        for label in range(3):
            unit = {
                key: torch.zeros(shape, dtype=torch.float64)
                for key, shape in zip(weights.layout.keys, weights.layout.shapes, strict=True)
            }
            for key, tensor in unit.items():
                tensor[label] = features[row] if key.endswith("weight") else 1
            jacobian[row, label] = torch.cat([unit[key].flatten() for key in weights.layout.keys])
    torch.testing.assert_close(mean, jacobian @ gaussian.mean.double(), rtol=0, atol=1e-5)
    dense = dense_covariance(gaussian.variance, gaussian.deviations, scale=1.7)
    torch.testing.assert_close(covariance, jacobian @ dense @ jacobian.mT, rtol=0, atol=1e-5)
    assert covariance.diagonal(dim1=1, dim2=2).min() > 0.1


def test_averages_of_a_linear_model_are_those_of_very_many_draws(base_folder, batch):
    # Red for: probabilities at the mean, a root of the covariance on the wrong side, noise of another variance.
    weights = head_only(base_folder)
    gaussian = some_gaussian(weights.layout.size, 4)
    logits = sampler(weights, gaussian, scale=1.7)(batch)
    count = 20_000
    drawn = weights.layout.unflatten(gaussian.sample(count, seed=1, scale=1.7, design="iid").double())
    (bias,) = (tensor for key, tensor in drawn.items() if key.endswith("bias"))
    (weight,) = (tensor for key, tensor in drawn.items() if key.endswith("weight"))
    draws = (features_of(weights, batch) @ weight.mT + bias[:, None]).softmax(-1)
    error = draws.std(dim=0) / count**0.5
    difference = (logits.softmax(-1).mean(dim=0) - draws.mean(dim=0)).abs()
    # Four standard errors of the many draws, and 2e-3 for the 1,024 matched draws of logits.
    assert (difference < 4 * error + 2e-3).all(), difference.max()
    assert (logits.mean(dim=0).softmax(-1) - draws.mean(dim=0)).abs().max() > 2e-2


def test_derivatives_are_those_of_finite_differences_of_the_whole_adapter(run, batch):
    # Red for: weights that take part and get no derivative, such as the LoRA matrices of one layer; padding that takes part.
    model, posterior, _ = run
    ours = MonteCarloPredictor(model, posterior, method="linearized")._logits.sampler
    weights, mean = ours._weights, posterior.gaussian.mean
    row = {name: value[:1, : int(batch["attention_mask"][0].sum())] for name, value in batch.items()}
    jacobian = ours._jacobian(ours._logits(row)[0])
    direction = torch.randn(len(mean), generator=torch.Generator().manual_seed(0))
    step = 1e-3
    around = torch.stack([mean + step * direction, mean - step * direction])
    up, down = SequentialSampler(weights, around)(row)[:, 0]
    torch.testing.assert_close(jacobian @ direction, (up - down) / (2 * step), rtol=1e-2, atol=2e-2)
    assert all(part.abs().max() > 0 for part in weights.layout.unflatten(jacobian).values())


def test_the_draws_of_the_logits_are_those_of_the_seed(base_folder, batch):
    # Red for: a seed that is taken and not used, or a process's own random state.
    weights = head_only(base_folder)
    gaussian = some_gaussian(weights.layout.size, 4)
    first, again, other = (sampler(weights, gaussian, seed=seed)(batch) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.1
    torch.testing.assert_close(first.mean(0), other.mean(0), rtol=0, atol=1e-5)


def test_weights_that_take_no_part_add_nothing(base_folder, batch):
    # Red for: a derivative that is missing, and with it an error or the derivatives of the weights after it in their places.
    def linearized(model):
        weights = AdapterWeights(model.eval())
        return sampler(weights, some_gaussian(weights.layout.size, 0)), weights.layout

    plain = lora_model(base_folder)
    base = lora_model(base_folder).unload()
    base.aside = torch.nn.Linear(4, 4)  # no forward ever comes here
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value", "aside"])
    (forward, layout), row = linearized(get_peft_model(base, config)), {name: value[:1] for name, value in batch.items()}
    parts = layout.unflatten(forward._jacobian(forward._logits(row)[0]))
    unused = {key for key, part in parts.items() if part.abs().max() == 0}
    assert unused == {key for key in layout.keys if "aside" in key} and len(unused) == 2
    assert len(layout.keys) == len(linearized(plain)[1].keys) + 2


def test_a_model_in_bfloat16_has_the_covariance_of_the_same_weights_in_float32(base_folder, batch):
    # Red for: derivatives kept in bfloat16, whose products with the posterior's float32 directions there are none of.
    model = lora_model(base_folder).eval()
    gaussian = some_gaussian(AdapterWeights(model).layout.size, 4)
    rounded = LowRankGaussian(gaussian.mean.bfloat16().float(), gaussian.variance, gaussian.deviations)
    wide = sampler(AdapterWeights(model.bfloat16().float()), rounded, scale=0.1).gaussian(batch)
    narrow = sampler(AdapterWeights(model.bfloat16()), rounded, scale=0.1)
    logits = narrow._logits({name: value[:1] for name, value in batch.items()})[0]
    assert logits.dtype == narrow._jacobian(logits).dtype == torch.float32
    for one, other in zip(narrow.gaussian(batch), wide, strict=True):
        # Sixteen-bit products of two layers: some per cent of the largest number.
        assert (one - other).abs().max() < 0.1 * other.abs().max()


def test_rows_from_inference_mode_reach_trained_embeddings_too(base_folder, batch):
    # Red for: rows made in inference mode and not copied. Only what is multiplied with a trained weight itself has to be kept for
    # the derivatives, here the numbers of the words.
    model = lora_model(base_folder, target_modules=["word_embeddings"]).eval()
    weights = AdapterWeights(model)
    forward = sampler(weights, some_gaussian(weights.layout.size, 0))
    expected = forward.gaussian(batch)
    with torch.inference_mode():
        found = forward.gaussian({name: value.clone() for name, value in batch.items()})
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_predictor_averages_the_gaussian_over_the_logits_and_leaves_the_model_alone(run, batch):
    # Red for: gradients or a requires_grad left on the user's parameters; a temperature or padding forgotten on this way.
    model, posterior, _ = run
    before = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    predictor = MonteCarloPredictor(model, posterior, method="linearized", temperature=2.0)
    answer = predictor.predict(batch)
    mean, covariance = predictor._logits.sampler.gaussian(
        {name: value[:1, : int(batch["attention_mask"][0].sum())] for name, value in batch.items()}
    )
    generator = np.random.default_rng(0)
    logits = generator.multivariate_normal(mean[0].numpy(), covariance[0].numpy(), size=200_000) / 2.0
    probabilities = torch.from_numpy(logits).softmax(-1)
    np.testing.assert_allclose(answer.probabilities[0], probabilities.mean(0), rtol=0, atol=6e-3)
    entropies = torch.special.entr(probabilities).sum(-1)
    np.testing.assert_allclose(answer.aleatoric[0], entropies.mean(), rtol=0, atol=1e-2)
    assert (answer.num_draws == 1024).all() and np.isnan(answer.standard_error).all()
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0] and parameter.requires_grad == before[name][1] and parameter.grad is None


def test_answers_do_not_depend_on_the_batch(run, texts):
    # Red for: noise made anew for each batch, derivatives of the sum over the rows.
    model, posterior, tokenizer = run
    predictor = MonteCarloPredictor(model, posterior, method="linearized", progress=False)
    rows = [dict(tokenizer(text)) for text in texts[:6]]
    together = predictor.predict(rows).probabilities
    for index, row in enumerate(rows):
        np.testing.assert_allclose(predictor.predict([row]).probabilities[0], together[index], rtol=0, atol=1e-6)


def test_it_works_where_nothing_is_to_be_differentiated_otherwise(run, batch):
    # Red for: a caller's no_grad or inference mode, in which a server runs, that reaches the derivatives.
    model, posterior, _ = run
    expected = MonteCarloPredictor(model, posterior, method="linearized").predict(batch).probabilities
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            predictor = MonteCarloPredictor(model, posterior, method="linearized")
            answer = predictor.predict({name: value.clone() for name, value in batch.items()})
        assert np.array_equal(answer.probabilities, expected)


def test_a_regression_has_exactly_the_mean_and_the_spread_of_the_formula(run, batch):
    # Red for: Monte-Carlo error in what is known in closed form.
    model, posterior, _ = run
    config, kind = model.get_base_model().config, model.get_base_model().config.problem_type
    config.problem_type = "regression"
    try:
        predictor = MonteCarloPredictor(model, posterior, method="linearized")
        answer = predictor.predict({name: value[:1, :4] for name, value in batch.items()})
    finally:
        config.problem_type = kind
    mean, covariance = predictor._logits.sampler.gaussian({name: value[:1, :4] for name, value in batch.items()})
    np.testing.assert_allclose(answer.mean, mean, rtol=0, atol=1e-5)
    np.testing.assert_allclose(answer.std, covariance.diagonal(dim1=1, dim2=2).sqrt(), rtol=1e-5)


def test_at_scale_0_it_is_the_mean_as_without_it(run, batch):
    # Red for: 1,024 equal draws, a NaN of a root of zero.
    model, posterior, _ = run
    answer = MonteCarloPredictor(model, posterior, method="linearized", scale=0).predict(batch)
    assert np.array_equal(answer.probabilities, MonteCarloPredictor(model, posterior, scale=0).predict(batch).probabilities)
    assert (answer.mutual_information == 0).all() and (answer.num_draws == 1).all()


def test_noise_and_root_are_exact():
    # Red for: noise that is not matched, an eigenvector too many, a root that is not symmetric.
    noise = logit_noise(3, seed=0)
    torch.testing.assert_close(noise.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(noise.T @ noise / len(noise), torch.eye(3).double(), rtol=0, atol=1e-6)
    factor = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    covariance = factor @ factor.mT  # of rank 2
    root = symmetric_root(covariance)
    torch.testing.assert_close(root @ root, covariance)
    torch.testing.assert_close(root, root.mT)


def test_what_cannot_be_linearised_is_refused(run, batch, monkeypatch):
    # Red for: settings of the other method that are ignored, or a covariance of zero for weights without derivatives.
    model, posterior, _ = run
    for settings in ({"max_error": 0.01}, {"num_blocks": 2}, {"compile": True}):
        with pytest.raises(SwagError, match="draws no weights"):
            MonteCarloPredictor(model, posterior, method="linearized", **settings)
    with pytest.raises(SwagError, match="'linearised'"):
        MonteCarloPredictor(model, posterior, method="linearised")
    predictor = MonteCarloPredictor(model, posterior, method="linearized")
    monkeypatch.setattr(type(predictor._logits.sampler._weights.model), "forward", torch.no_grad()(type(model).forward))
    with pytest.raises(SwagError, match='could not be differentiated.*method="monte_carlo"'):
        predictor.predict(batch)


def test_a_device_that_is_full_is_not_a_model_that_cannot_be_differentiated(run, batch, monkeypatch):
    # Red for: an error that sends people to another method, where a smaller batch or model would do; and what catches a full device
    # further up would not know it.
    predictor = MonteCarloPredictor(run[0], run[1], method="linearized")

    def full(*arguments, **named):
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(type(predictor._logits.sampler._weights.model), "forward", full)
    with pytest.raises(torch.OutOfMemoryError, match="the device is full"):
        predictor.predict(batch)


def test_a_laplace_posterior_of_the_head_needs_no_draws(run, texts):
    # Red for: the curvature of one factor, directions that were left out without their prior variance, the bias in another column,
    # the scale of a standard deviation.
    model, _, tokenizer = run
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    posterior = fit_posterior(model, rows, method="laplace-head", prior_precision=0.5, progress=False)
    layout, (block,) = posterior.layout, posterior.blocks
    jacobian = torch.randn(3, layout.size, generator=torch.Generator().manual_seed(0))
    matrices = layout.unflatten(jacobian.double())
    (bias,) = (tensor for key, tensor in matrices.items() if key.endswith("bias"))
    (weight,) = (tensor for key, tensor in matrices.items() if key.endswith("weight"))
    whole = torch.cat([weight, bias[..., None]], dim=-1).flatten(1)
    for kept in (block, block.without_negligible(300.0)):
        factors = [(v.double() * values.double()) @ v.T.double() for v, values in ((kept[0], kept[1]), (kept[2], kept[3]))]
        precision = torch.kron(*factors) + 0.5 * torch.eye(whole.shape[1], dtype=torch.float64)
        expected = 1.7 * whole @ torch.linalg.inv(precision) @ whole.T
        found = replace(posterior, blocks=(kept,)).quadratic_form(1.7)(jacobian)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not block.without_negligible(300.0).is_whole
    options = {"scale": 30.0, "temperature": 1.0, "progress": False}
    many = MonteCarloPredictor(model, posterior, num_samples=3000, **options).predict(rows[:6])
    closed = MonteCarloPredictor(model, posterior, method="linearized", **options).predict(rows[:6])
    np.testing.assert_allclose(many.probabilities, closed.probabilities, atol=1e-2)
    np.testing.assert_allclose(many.mutual_information, closed.mutual_information, rtol=0.05)
    assert closed.mutual_information.min() > 0.05
