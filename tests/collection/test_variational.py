"""BLoB and IVON: their formulas against slow oracles, and training with the real Trainer, to a posterior that another process can load."""

import copy

import pytest
import torch
from conftest import labelled, lora_model
from torch import nn
from torch.distributions import Normal, kl_divergence
from transformers import Trainer, TrainingArguments

from swag_trainer import Blob, Ivon, MeanFieldPosterior, MonteCarloPredictor, Sampling, SwagError, VariationalMixin
from swag_trainer.collection import blob
from swag_trainer.collection.blob import BlobOptimizer
from swag_trainer.collection.ivon import IvonOptimizer


class VariationalTrainer(VariationalMixin, Trainer):
    pass


def trainer(base_folder, texts, tokenizer, folder, variational, **arguments):
    settings = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    } | arguments
    return VariationalTrainer(
        model=lora_model(base_folder),
        args=TrainingArguments(**settings),
        train_dataset=labelled(texts, tokenizer),
        eval_dataset=labelled(texts[:4], tokenizer),
        processing_class=tokenizer,
        variational=variational,
    )


def test_kl_is_that_of_two_normal_distributions_and_so_are_its_gradients():
    # Red for: std = root instead of its square; a mean that is not divided by the prior's variance.
    torch.manual_seed(0)
    mean, root = (torch.randn(3, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    expected = kl_divergence(Normal(mean, root.square()), Normal(torch.zeros(()), torch.tensor(0.2))).sum()
    torch.testing.assert_close(blob.kl_divergence(mean, root, 0.2**2), expected)
    torch.testing.assert_close(blob.kl_gradients(mean, root, 0.2**2), torch.autograd.grad(expected, (mean, root)))


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6)])
def test_flipout_is_one_perturbed_matrix_for_each_example(shape):
    # Red for: signs that the examples share; the signs of the input applied to the output.
    layer, root, x = nn.Linear(6, 2, bias=False), torch.rand(2, 6), torch.randn(shape)
    torch.manual_seed(1)
    noisy = blob._add_noise(layer, (x,), layer(x), root=root)
    torch.manual_seed(1)
    noise, ones = torch.randn(2, 6) * root**2, [1] * (len(shape) - 2)
    before, after = (torch.randint(0, 2, (4, *ones, size), dtype=torch.int8) * 2 - 1 for size in (6, 2))
    for example in range(4):
        flips = after[example].reshape(2, 1) * before[example].reshape(1, 6)
        torch.testing.assert_close(noisy[example], x[example] @ (layer.weight + noise * flips).T)
    assert blob._add_noise(layer.eval(), (x,), noisy, root=root) is noisy


def test_kl_weights_of_an_epoch_are_those_of_the_paper():
    # Red for: weights that begin again one step late, or that do not sum to the number of steps.
    optimizer = BlobOptimizer(
        [], [{"params": [nn.Parameter(torch.zeros(1))]}], Blob(), learning_rate=0.1, num_examples=9, epoch=4
    )
    found = []
    for _ in range(8):
        found.append(optimizer.kl_weight())
        optimizer.end_backward()
    assert found == pytest.approx(2 * [4 * 2**step / (2**4 - 1) for step in range(4)])


def test_ivon_takes_the_steps_of_its_paper():
    # Red for: a Hessian that is updated after the mean; momentum without its correction; the noise left in the weights.
    method, sizes = Ivon(hessian=0.3, weight_decay=0.01, beta1=0.8, beta2=0.9, effective_sample_size=None), 50
    parameter = nn.Parameter(torch.tensor([0.5, -1.0]))
    optimizer = IvonOptimizer([parameter], method, learning_rate=0.1, num_examples=sizes)
    curvature, target = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])
    mean, hessian, momentum = torch.tensor([0.5, -1.0]), torch.full((2,), 0.3), torch.zeros(2)
    for step in range(1, 6):
        torch.manual_seed(step)
        optimizer.begin_step()
        parameter.grad = curvature * (parameter.detach() - target)
        with torch.no_grad():
            optimizer.end_backward()
        optimizer.step()
        torch.manual_seed(step)
        std = 1 / (sizes * (hessian + 0.01)) ** 0.5
        noise = std * torch.randn(2)
        gradient = curvature * (mean + noise - target)
        estimate = gradient * noise / std**2
        hessian, momentum = (
            0.9 * hessian + 0.1 * estimate + 0.5 * 0.1**2 * (hessian - estimate) ** 2 / (hessian + 0.01),
            0.8 * momentum + 0.2 * gradient,
        )
        mean = mean - 0.1 * 0.31 * (momentum / (1 - 0.8**step) + 0.01 * mean) / (hessian + 0.01)
        torch.testing.assert_close(parameter.detach(), mean)
        torch.testing.assert_close(optimizer.variance(parameter), 1 / (sizes * (hessian + 0.01)))


def test_ivon_finds_the_posterior_of_a_quadratic_loss():
    # Red for: a variance that is not divided by the number of examples; a Hessian estimate by the noise in place of its variance.
    torch.manual_seed(0)
    curvature = torch.tensor([0.5, 2.0, 8.0])
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = IvonOptimizer(
        [parameter], Ivon(hessian=1.0, beta2=0.999, effective_sample_size=None), learning_rate=0.1, num_examples=100
    )
    for _ in range(6000):
        optimizer.begin_step()
        parameter.grad = curvature * (parameter.detach() - 1)
        with torch.no_grad():
            optimizer.end_backward()
        optimizer.step()
    torch.testing.assert_close(optimizer.variance(parameter), 1 / (100 * curvature), rtol=0.2, atol=0)
    torch.testing.assert_close(parameter.detach(), torch.ones(3), rtol=0.1, atol=0)


@pytest.mark.parametrize("method", [Blob(), Ivon()], ids=lambda method: method.name)
def test_training_ends_with_a_posterior_that_the_hub_keeps(hub, base_folder, texts, tokenizer, tmp_path, method):
    # Red for: no begin_step (IVON then has no noise), the noise kept in the model after training, a record without the labels.
    run = trainer(base_folder, texts, tokenizer, tmp_path / "run", method)
    before = copy.deepcopy(run.model.state_dict())
    run.train()
    posterior = run.posterior
    assert posterior.title == method.name.upper() and posterior.fit.num_examples == len(texts)
    variances = posterior.layout.unflatten(posterior.variance)
    noisy = {key.split(".")[-2] for key, variance in variances.items() if variance.any()}
    assert noisy == ({"lora_A"} if method.name == "BLoB" else {"lora_A", "lora_B", "classifier"})
    assert any(not torch.equal(before[key], value) for key, value in run.model.state_dict().items())
    rows = labelled(texts, tokenizer)[:5]
    at_mean = MonteCarloPredictor(run.model, posterior, Sampling(scale=0.0)).predict(rows).probabilities
    logits = run.predict(run.train_dataset).predictions[:5]
    assert at_mean == pytest.approx(torch.tensor(logits).softmax(-1).numpy(), abs=1e-6)
    posterior.push_to_hub(f"user/{method.name.lower()}")
    loaded = MeanFieldPosterior.from_pretrained(f"user/{method.name.lower()}")
    assert torch.equal(
        loaded.draw(3, seed=1).vectors, MeanFieldPosterior.from_pretrained(tmp_path / "run").draw(3, seed=1).vectors
    )
    assert loaded.record.labels == posterior.record.labels


@pytest.mark.parametrize("method", [Blob(kl_weights="uniform"), Ivon()], ids=lambda method: method.name)
def test_a_resumed_run_ends_with_the_posterior_of_an_uninterrupted_one(base_folder, texts, tokenizer, tmp_path, method):
    # Red for: G, the Hessian or the momentum left out of state_dict().
    whole = trainer(base_folder, texts, tokenizer, tmp_path / "whole", method, save_strategy="steps", save_steps=5)
    whole.train()
    resumed = trainer(base_folder, texts, tokenizer, tmp_path / "resumed", method)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert torch.equal(whole.posterior.mean_vector(), resumed.posterior.mean_vector())
    assert torch.equal(whole.posterior.variance, resumed.posterior.variance)


def test_an_interrupted_step_leaves_the_mean(base_folder, texts, tokenizer, tmp_path):
    # Red for: no close() when training fails.
    run = trainer(base_folder, texts, tokenizer, tmp_path, Ivon())
    run.train_dataset = [{**row, "labels": 7} for row in run.train_dataset]  # out of range: the first forward fails
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    with pytest.raises(IndexError):
        run.train()
    assert all(torch.equal(before[name], weight) for name, weight in run.model.named_parameters())


def test_the_best_model_at_the_end_is_refused(base_folder, texts, tokenizer, tmp_path):
    # Red for: a mean of one step beside the variance of another.
    evaluated = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    with pytest.raises(SwagError, match="load_best_model_at_end"):
        trainer(base_folder, texts, tokenizer, tmp_path, Blob(), load_best_model_at_end=True, **evaluated)


def test_dora_is_refused_by_blob(base_folder, texts, tokenizer, tmp_path):
    # Red for: noise on A where the layer computes something else.
    run = trainer(base_folder, texts, tokenizer, tmp_path, Blob())
    run.model = lora_model(base_folder, use_dora=True)
    with pytest.raises(SwagError, match="DoRA"):
        run.create_optimizer()
