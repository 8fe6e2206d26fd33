"""Clients that average their adapters by trust: the formulas, and several clients as threads of one process with real Trainers."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import labelled, lora_model, trainer_for

from swag_trainer import CollaborationCallback, SwagError
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.clients import Clients
from swag_trainer.collection.trust import trust_by_predictions, trust_by_validation, trust_by_weights
from swag_trainer.posterior.layout import WeightLayout


def softmax(scores):
    numbers = np.exp(np.array(scores) - max(scores))
    return numbers / numbers.sum()


def test_trust_by_weights_is_the_softmax_of_the_mean_cosine_of_rows():
    # Red for: one cosine over a whole tensor, a mean over tensors in place of rows, a bias with a row for each number.
    layout = WeightLayout(("a", "b"), ((2, 3), (4,)))
    vectors = torch.randn(3, 10)
    scores = []
    for other in vectors:
        rows = [(other[:3], vectors[1][:3]), (other[3:6], vectors[1][3:6]), (other[6:], vectors[1][6:])]
        scores.append(np.mean([float(x @ y / (x.norm() * y.norm())) for x, y in rows]))
    assert trust_by_weights(vectors, layout, 1).numpy() == pytest.approx(softmax(scores), abs=1e-6)


def test_trust_by_validation_is_the_softmax_of_minus_the_perplexity():
    # Red for: the loss in place of the perplexity, trust in a model whose loss is not a number.
    losses = [0.3, 1.5, 0.9]
    assert trust_by_validation(torch.tensor(losses)).numpy() == pytest.approx(softmax([-math.exp(x) for x in losses]), abs=1e-6)
    assert trust_by_validation(torch.tensor([0.3, math.nan, 1e30])).tolist() == [1, 0, 0]
    assert trust_by_validation(torch.tensor([math.nan, math.inf])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("classes", [5, 130])
def test_trust_by_predictions_is_the_softmax_of_the_normalised_distances(classes):
    # Red for: distances that are not normalised; the hundred highest logits of somebody else.
    logits = torch.randn(3, 4, classes, dtype=torch.float64)
    distances = []
    for other in logits:
        rows = [
            np.mean([abs(float(other[row, c] - logits[2, row, c])) for c in logits[2, row].argsort(descending=True)[:100]])
            for row in range(4)
        ]
        distances.append(np.mean(rows))
    expected = softmax([-10 * distance / sum(distances) for distance in distances])
    assert trust_by_predictions(logits, 2).numpy() == pytest.approx(expected, abs=1e-9)
    assert trust_by_predictions(torch.ones(2, 3, 4), 0).tolist() == [0.5, 0.5]


def as_clients(count, act):
    """Run ``act(client)`` in a thread for each client; return the results, or raise the first error."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(act, range(count)))


@pytest.fixture
def run(base_folder, texts, tokenizer, tmp_path):
    """Three clients that train: (trainers, callbacks). The last one has shuffled labels."""

    def trained(scheme, **settings):
        trainers, callbacks = [], []
        for client in range(3):
            rows = labelled(texts, tokenizer)
            if client == 2:
                rows = [{**row, "labels": (row["labels"] + 1) % 3} for row in rows]
            callbacks.append(
                CollaborationCallback(
                    client=client,
                    num_clients=3,
                    rendezvous=str(tmp_path / "meet"),
                    scheme=scheme,
                    timeout=60,
                    **{"every": 4, "warmup": 4} | settings,
                )
            )
            trainers.append(
                trainer_for(
                    lora_model(base_folder, seed=client),
                    rows[client::3] + rows[client + 1 :: 3],
                    tokenizer,
                    tmp_path / f"client-{client}",
                    callbacks=callbacks[-1:],
                    eval_rows=rows[:6],
                    max_steps=8,
                )
            )
            callbacks[-1].attach(trainers[-1])
        as_clients(3, lambda client: trainers[client].train())
        return trainers, callbacks

    return trained


def vector(trainer):
    weights = AdapterWeights(trainer.model)
    return weights.layout.flatten(weights.read())


def test_clients_of_uniform_trust_end_with_the_same_adapter(run):
    # Red for: an average that is not written, or written before all have sent theirs; a first average before warmup + every.
    trainers, callbacks = run("uniform")
    first = vector(trainers[0])
    assert all(torch.equal(first, vector(other)) for other in trainers[1:])
    assert all(list(callback.trust) == [8] for callback in callbacks)


def test_trust_by_validation_measures_every_clients_model_on_the_clients_own_examples(run):
    # Red for: the trusting client's own model measured three times; the model left with another client's weights.
    trainers, callbacks = run("validation", every=8, warmup=0)
    rows = torch.stack([callback.trust[8] for callback in callbacks])
    torch.testing.assert_close(rows.sum(1), torch.ones(3, dtype=torch.float64))
    assert not torch.equal(rows[0], rows[2]) and rows[0].unique().numel() == 3
    assert not torch.equal(vector(trainers[0]), vector(trainers[2]))


def test_other_trust_schemes_mix_too(run, texts, tokenizer):
    # Red for: logits that are not exchanged.
    _, callbacks = run("predictions", shared_data=labelled(texts, tokenizer)[:5])
    assert all(float(callback.trust[8].sum()) == pytest.approx(1) for callback in callbacks)
    assert all(int(callback.trust[8].argmax()) == number for number, callback in enumerate(callbacks))


def test_clients_that_do_not_fit_are_told_so(tmp_path, monkeypatch):
    # Red for: clients that average adapters of other steps; a Trainer that joins the default group.
    for settings in ({"client": 3}, {"scheme": "trust"}, {"every": 0}, {"shared_data": []}):
        with pytest.raises(SwagError):
            callback = CollaborationCallback(**{"client": 0, "num_clients": 3, "rendezvous": str(tmp_path / "x")} | settings)
            Clients(callback.client, 3, callback.rendezvous)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SwagError, match="LOCAL_RANK"):
        Clients(0, 2, str(tmp_path / "x"))


def test_a_client_that_does_not_come_is_an_error_in_time(tmp_path):
    # Red for: waiting for ever.
    with pytest.raises(SwagError, match="did not meet"):
        Clients(0, 2, str(tmp_path / "alone"), timeout=1)
