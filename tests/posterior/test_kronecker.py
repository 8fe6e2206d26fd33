"""KroneckerPosterior of several matrices, against dense covariances."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.kronecker import KroneckerPosterior, matrices_of
from swag_trainer.posterior.kronecker_block import KroneckerBlock
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter

TAU = 2.0


def factor(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ torch.diag(torch.logspace(1, -4, size, dtype=torch.float64)) @ root.T


FACTORS = {"a": (factor(3, 0), factor(5, 1)), "b": (factor(2, 2), factor(3, 3))}  # the 5 are 4 inputs and the bias


@pytest.fixture(scope="module")
def posterior():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.bias": (3,), "a.weight": (3, 4), "b.weight": (2, 3)}
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    layout = WeightLayout.of(weights)
    blocks = tuple(KroneckerBlock.of(*factors) for factors in FACTORS.values())
    fit = FitRecord("laplace", settings={"prior_precision": TAU})
    return KroneckerPosterior(layout, layout.flatten(weights), blocks, PosteriorRecord(), fit, SavedAdapter({}, weights))


def covariance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    size = len(left) * len(right)
    return torch.linalg.inv(torch.kron(left.contiguous(), right.contiguous()) + TAU * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_steps_have_the_covariance_of_the_formula_with_all_directions_and_without_some(scale):
    # Red for: the variance in the place of its root, eigenvectors of the other side, a scale that only kept directions have, directions that
    # are left out without the prior's variance.
    block = KroneckerBlock.of(*FACTORS["a"])
    thin = KroneckerBlock(block.left_vectors[:, 1:], block.left_values[1:], block.right_vectors[:, 2:], block.right_values[2:])
    for one in (block, thin):
        left = one.left_vectors @ torch.diag(one.left_values) @ one.left_vectors.T
        right = one.right_vectors @ torch.diag(one.right_values) @ one.right_vectors.T
        # Feeding the identity in the place of noise turns the map into its own matrix.
        root = one.displacement(torch.eye(15).view(15, 3, 5), prior_precision=TAU, scale=scale).flatten(1).double()
        expected = scale * covariance(left.double(), right.double())
        torch.testing.assert_close(root.T @ root, expected, rtol=1e-4, atol=1e-5)
        assert scale * one.total_variance(TAU) == pytest.approx(float(expected.trace()), rel=1e-4)


def test_directions_that_the_data_hardly_determine_are_left_out():
    # Red for: a limit that is too high or on one side alone, which would change the covariance.
    block = KroneckerBlock.of(*FACTORS["a"])
    for tau in (1e-3, 2.0, 1e6):
        kept = block.without_negligible(tau)
        found = kept.displacement(torch.eye(15).view(15, 3, 5), prior_precision=tau, scale=1.0).flatten(1).double()
        whole = block.displacement(torch.eye(15).view(15, 3, 5), prior_precision=tau, scale=1.0).flatten(1).double()
        torch.testing.assert_close(found.T @ found, whole.T @ whole, rtol=0.03, atol=0.03 / tau)
        assert kept.is_whole == (tau == 1e-3) and (len(kept.left_values) == 0) == (tau == 1e6)


def test_matrices_are_drawn_independently_of_each_other_each_with_its_bias(posterior):
    # Red for: one noise for two matrices, blocks in another order than the matrices, a bias from another column.
    draws = posterior.sample(20_000, seed=0, design="iid")
    flat = torch.cat(
        [torch.cat([draws["a.weight"], draws["a.bias"][:, :, None]], 2).flatten(1), draws["b.weight"].flatten(1)], 1
    )
    expected = torch.block_diag(*(covariance(*factors) for factors in FACTORS.values()))
    sd = expected.diag().sqrt()
    errors = (torch.cov(flat.double().T) - expected) / torch.outer(sd, sd)
    assert errors.abs().max() < 0.05
    assert posterior.total_variance == pytest.approx(float(expected.trace()), rel=1e-4)
    assert torch.equal(posterior.draw(2, seed=0, scale=0.0).vectors[1], posterior.mean_vector())


def read(posterior, tensors, **metadata):
    found = {name: tensor for name, tensor in (posterior.tensors() | tensors).items() if tensor is not None}
    described = posterior.metadata() | metadata
    return KroneckerPosterior.from_tensors(found, posterior.record, posterior.adapter, described, where="the file")


def test_a_file_of_several_matrices_gives_the_same_draws_and_one_of_a_head_keeps_its_names(posterior):
    # Red for: blocks that are exchanged, directions that are lost; a file of today's that tomorrow's version cannot read.
    thin = replace(posterior, blocks=tuple(block.without_negligible(20.0) for block in posterior.blocks))
    assert not all(block.is_whole for block in thin.blocks)
    for one in (posterior, thin):
        assert torch.equal(read(one, {}).draw(3, seed=1).vectors, one.draw(3, seed=1).vectors)
    assert "left_vectors/a.weight" in posterior.tensors()
    weights = {key: value for key, value in posterior.mean.items() if key.startswith("a.")}
    layout = WeightLayout.of(weights)
    head = replace(posterior, layout=layout, vector=layout.flatten(weights), blocks=posterior.blocks[:1])
    names = {"mean/a.weight", "mean/a.bias", "left_vectors", "left_values", "right_vectors", "right_values"}
    assert set(head.tensors()) == names and torch.equal(read(head, {}).draw(2, seed=0).vectors, head.draw(2, seed=0).vectors)


def test_what_no_fit_can_have_written_is_refused(posterior):
    # Red for: a check that is left out.
    tensors = posterior.tensors()
    vectors, values = tensors["left_vectors/a.weight"], tensors["left_values/a.weight"]
    for changes in (
        {"left_vectors/a.weight": None},
        {"left_vectors/c.weight": vectors},
        {"left_vectors/a.weight": vectors.double()},
        {"left_vectors/a.weight": torch.cat([vectors, vectors], 1)},
        {"left_values/a.weight": values[:1]},
        {"left_values/a.weight": -values - 1},
        {"right_vectors/a.weight": tensors["right_vectors/b.weight"]},
        {"mean/c.bias": torch.zeros(2)},
        {"mean/c": torch.zeros(2, 2, 2)},
        {"mean/c.weight": torch.zeros(0, 2)},
    ):
        with pytest.raises(PosteriorFormatError):
            read(posterior, changes)
    for tau in (0.0, -1.0, float("inf")):
        with pytest.raises(PosteriorFormatError):
            read(posterior, {}, settings={"prior_precision": tau})


def test_a_bias_belongs_to_one_matrix():
    # Red for: a bias that two names end in, whose draws then have more numbers than there are weights.
    layout = WeightLayout(("a.", "a.bias", "a.weight"), ((2, 3), (2,), (2, 3)))
    assert matrices_of(layout) == {"a.": "a.bias", "a.weight": None}
