"""Dropout while drawing, against the same passes by hand."""

import copy

import numpy as np
import pytest
import torch
from lively import short_run

from swag_trainer import MonteCarloPredictor, PointPosterior, Sampling, SwagError
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.lengths import batches_of_one_length


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    """(model, posterior, rows)."""
    model, posterior, tokenizer = short_run(base_folder, texts, tmp_path_factory.mktemp("run"))
    return model, posterior, [dict(tokenizer(text)) for text in texts]


def by_hand(model, vectors, layout, rows, *, seed):
    """Probabilities of passes in training mode, batch by batch from the longest rows on. Shape (S, N, C)."""
    twin = copy.deepcopy(model).train()
    weights = AdapterWeights(twin, keys=layout.keys)
    batches, order = batches_of_one_length(rows, 32)
    probabilities = np.empty((len(vectors), len(rows), 3))
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for places in batches:
            batch = {name: torch.tensor([rows[place][name] for place in places]) for name in rows[0]}
            for index, vector in enumerate(vectors):
                weights.write(layout.unflatten(vector))
                probabilities[index, places] = twin(**batch).logits.double().softmax(-1)
    return probabilities


@pytest.mark.parametrize("kind", ["point", "posterior", "posterior at scale 0"])
def test_every_draw_has_a_mask_of_its_own(run, kind):
    # Red for: evaluation mode, one mask for all draws, a batch that begins with the masks of the one before, draws in another order.
    model, posterior, rows = run
    mean = posterior.mean_vector()
    chosen = PointPosterior.at(mean, posterior) if kind == "point" else posterior
    scale = None if kind != "posterior at scale 0" else 0
    vectors = posterior.draw(4, seed=3).vectors if kind == "posterior" else mean.expand(4, -1)
    sampling = Sampling(num_samples=4, seed=3, scale=scale, dropout=True)
    predictor = MonteCarloPredictor(model, chosen, sampling, progress=False)
    expected = by_hand(model, vectors, posterior.layout, rows, seed=3)
    state = torch.get_rng_state()
    for _ in range(2):  # the second call begins with the first mask again
        predicted = predictor.predict(rows, return_draws=True)
        # Another mask is 1e-3 away; a copy of the model at other addresses rounds by up to 1e-6.
        np.testing.assert_allclose(predicted.draw_probabilities, expected, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.abs(expected - expected[:1])[1:].max() > 1e-3 and (predicted.num_draws == 4).all()


@pytest.mark.parametrize("kind", ["point", "posterior"])
def test_a_model_that_drops_nothing_out_is_refused(run, kind):
    # Red for: equal passes in the name of MC dropout; for draws that differ anyway, a check of their predictions.
    model, posterior, rows = run
    quiet = copy.deepcopy(model)
    for module in quiet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    chosen = PointPosterior.at(posterior.mean_vector(), posterior) if kind == "point" else posterior
    with pytest.raises(SwagError, match="nothing in this model drops out"):
        MonteCarloPredictor(quiet, chosen, num_samples=2, dropout=True).predict(rows)


@pytest.mark.parametrize("settings", [{"method": "linearized"}, {"compile": True}])
def test_dropout_is_refused_where_it_would_be_ignored(run, settings):
    # Red for: a setting that is taken and not used.
    with pytest.raises(SwagError, match="dropout"):
        MonteCarloPredictor(run[0], run[1], dropout=True, **settings)


def test_what_has_no_covariance_is_not_linearised(run):
    # Red for: an AttributeError, or a point predicted as a Gaussian of width 0.
    point = PointPosterior.at(run[1].mean_vector(), run[1])
    with pytest.raises(SwagError, match="needs a Gaussian posterior, and one of kind 'point'"):
        MonteCarloPredictor(run[0], point, method="linearized")
