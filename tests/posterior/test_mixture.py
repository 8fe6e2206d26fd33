"""Mixtures of posteriors: draws, uncertainty within and between members, one repository, and stacking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lively import short_run
from peft import PeftModel, get_peft_model_state_dict
from scipy.special import softmax
from trajectories import same
from transformers import AutoModelForSequenceClassification, pipeline

from hub_cards import build_card
from swag_trainer import (
    AdapterMismatchError,
    MonteCarloPredictor,
    PointPosterior,
    PosteriorFormatError,
    PosteriorMixture,
    SwagError,
    load_posterior,
    stack,
    tune,
)
from swag_trainer.calibration.stack import stacking_weights
from swag_trainer.cli.main import main
from swag_trainer.cli.page_predictions import PagePredictions

WEIGHTS = (0.5, 0.3, 0.2)


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    return short_run(base_folder, texts, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def members(run):
    """Three posteriors of one adapter, far from each other."""
    swag = run[1]
    generator = torch.Generator().manual_seed(1)
    shifts = (2 * torch.randn(swag.layout.size, generator=generator) for _ in range(2))
    others = (replace(swag, gaussian=replace(swag.gaussian, mean=swag.gaussian.mean + shift)) for shift in shifts)
    return [swag, *others]


@pytest.fixture
def rows(run, texts):
    return [dict(run[2](text)) for text in texts[:6]]


def entropy(probabilities):
    return -(probabilities * np.log(probabilities)).sum(-1)


def test_predictions_and_their_uncertainty_equal_the_formulas_over_all_members_and_draws(run, members, rows):
    # Red for: members that share their noise or lose their weights, averages over all draws alike, a "between" that is not of averages.
    mixture = PosteriorMixture.of(members, WEIGHTS)
    predicted = MonteCarloPredictor(run[0], mixture, num_samples=12, progress=False).predict(rows, return_draws=True)
    assert predicted.draw_probabilities.shape[0] == 12 and (predicted.num_draws == 12).all()

    draws = mixture.draw(12, seed=0).vectors
    blocks = draws.reshape(3, 4, -1)
    noise = blocks - torch.stack([member.mean_vector() for member in members])[:, None]
    assert noise.mean(1).abs().max() < 1e-4 * noise.abs().max()  # matched within each member
    assert (noise[0] - noise[1]).abs().max() > 0.1 * noise.abs().max()

    means = np.stack(
        [
            MonteCarloPredictor(run[0], PointPosterior.at(vector, mixture), progress=False).predict(rows).probabilities
            for vector in draws
        ]
    ).reshape(3, 4, len(rows), -1)
    averages = means.mean(1)
    expected = np.tensordot(WEIGHTS, averages, axes=1)
    between = entropy(expected) - np.tensordot(WEIGHTS, entropy(averages), axes=1)
    within = np.tensordot(WEIGHTS, entropy(averages) - entropy(means).mean(1), axes=1)
    np.testing.assert_allclose(predicted.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(predicted.mutual_information, within + between, atol=1e-6)
    np.testing.assert_allclose(predicted.between_members, between, atol=1e-6)
    np.testing.assert_allclose(predicted.within_members, within, atol=1e-6)
    assert between.min() > 1e-3 and within.min() > 1e-4


def test_a_posterior_alone_has_no_members(run, members, rows):
    # Red for: members of a single posterior.
    predicted = MonteCarloPredictor(run[0], members[0], progress=False).predict(rows)
    assert predicted.between_members is None and predicted.within_members is None


def test_at_scale_0_each_member_is_one_pass_at_its_mean(run, members, rows):
    # Red for: one pass at the mean of the means, or as many passes as draws were asked for.
    mixture = PosteriorMixture.of(members)
    predicted = MonteCarloPredictor(run[0], mixture, num_samples=30, scale=0, progress=False).predict(rows, return_draws=True)
    alone = [MonteCarloPredictor(run[0], member, scale=0, progress=False).predict(rows).probabilities for member in members]
    np.testing.assert_allclose(predicted.draw_probabilities, np.stack(alone), atol=1e-6)

    ensemble = PosteriorMixture.of([PointPosterior.at(member.mean_vector(), member) for member in members])
    assert (ensemble.title, ensemble.scale, mixture.title, mixture.scale) == ("Ensemble", 0.0, "MultiSWAG", 1.0)
    of_points = MonteCarloPredictor(run[0], ensemble, num_samples=30, progress=False).predict(rows)
    np.testing.assert_array_equal(of_points.probabilities, predicted.probabilities)


def test_the_scale_is_a_factor_of_each_members_own(members):
    # Red for: a mixture's scale in the place of its members'.
    mixture = PosteriorMixture.of([member.with_scale(scale) for member, scale in zip(members, (0.0, 1.0, 4.0), strict=True)])
    noise = mixture.draw(30, seed=0, scale=0.25).vectors.reshape(3, 10, -1)
    spread = (noise - noise.mean(1, keepdim=True)).square().sum((1, 2))
    assert spread[0] < 1e-6 * spread[1]  # the rounding of a mean
    assert spread[2] / spread[1] == pytest.approx(4, rel=0.2)


def test_draws_are_rounded_up_to_as_many_for_each_member(members):
    # Red for: a member with fewer draws, or a number that is changed without a word.
    with pytest.warns(UserWarning, match=r"num_samples=10 is no multiple of the 3 members of the mixture: 12"):
        draws = PosteriorMixture.of(members, WEIGHTS).draw(10, seed=0)
    assert draws.members.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and draws.block_size == 12
    np.testing.assert_allclose(draws.weights, np.repeat(WEIGHTS, 4) / 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_mixture_comes_back_from_the_hub_and_its_members_open_in_plain_peft(
    run, members, rows, texts, base_folder, tmp_path, hub, dtype
):
    # Red for: a member, weight or scale lost on the way, an adapter in the wrong folder, a top adapter that is not the first member's.
    model, _, tokenizer = run
    mixture = PosteriorMixture.of([members[0], members[1].with_scale(0.5), members[2]], WEIGHTS)
    mixture.save_pretrained(tmp_path / "saved", dtype=dtype)
    tokenizer.save_pretrained(tmp_path / "saved")
    commit = mixture.push_to_hub(f"user/mixture-{dtype}", dtype=dtype)
    here, there = load_posterior(tmp_path / "saved"), load_posterior(f"user/mixture-{dtype}", revision=commit.oid)
    for loaded in (here, there):
        assert isinstance(loaded, PosteriorMixture) and loaded.member_weights == mixture.member_weights
        assert loaded.digest == mixture.digest
        assert [member.scale for member in loaded.members] == [1.0, 0.5, 1.0]
        assert all(same(one, other) for one, other in zip(loaded.members, mixture.members, strict=True))
    stored = mixture.stored_as(dtype)
    expected = MonteCarloPredictor(model, stored, num_samples=6, progress=False).predict(rows).probabilities
    served = pipeline("swag-text-classification", model=str(tmp_path / "saved"), device="cpu", num_samples=6)
    answers = [[row["score"] for row in ranks] for ranks in served(texts[: len(rows)], top_k=None)]
    np.testing.assert_allclose(answers, np.sort(expected)[:, ::-1], atol=1e-6)
    best = served(texts[0])[0]
    assert 0 < best["between_members"] <= best["mutual_information"]

    for folder, member in {"": mixture.members[0], **{f"member-{n}": m for n, m in enumerate(mixture.members)}}.items():
        base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
        plain = get_peft_model_state_dict(PeftModel.from_pretrained(base, tmp_path / "saved" / folder))
        assert all(torch.equal(plain[key], value) for key, value in member.mean.items())


def test_card_and_page_describe_a_mixture(run, members, texts):
    # Red for: a first member's mean that is called "the weights that training ended with", one pass at the mean of all means.
    mixture = PosteriorMixture.of(members, WEIGHTS)
    card = str(build_card(mixture, repo_id="user/mixture"))
    assert "gets the mean of its first member" in card and "training ended with" not in card
    model, _, tokenizer = run
    classify = pipeline(
        "swag-text-classification", model=model, tokenizer=tokenizer, posterior=mixture, num_samples=6, device="cpu"
    )
    page = PagePredictions(classify)
    assert not page.has_trained_weights
    expected = MonteCarloPredictor(model, mixture, scale=0, progress=False).predict([dict(tokenizer(texts[0]))])
    np.testing.assert_allclose(page(texts[0]).mean, expected.probabilities[0], atol=1e-6)


def test_members_that_no_forward_can_share_are_refused(members):
    # Red for: a difference that is not looked at, or only in the first pair.
    first, second, third = members
    adapter = third.adapter
    cases = [
        (replace(third, record=replace(third.record, labels=["x", "y", "z"])), "same labels"),
        (replace(third, adapter=replace(adapter, config={**adapter.config, "lora_alpha": 99})), "lora_alpha is"),
        (
            replace(third, adapter=replace(adapter, config={**adapter.config, "base_model_name_or_path": "x"})),
            "same base_model",
        ),
        (
            replace(third, adapter=replace(adapter, tensors={**adapter.tensors, "fixed": torch.ones(1)})),
            "'fixed', which was not trained",
        ),
    ]
    for odd, message in cases:
        with pytest.raises(AdapterMismatchError, match=message):
            PosteriorMixture.of([first, second, odd])
    with pytest.raises(SwagError, match="2 to 64 members, got 1"):
        PosteriorMixture.of([first])
    with pytest.raises(SwagError, match="Member 1 is a mixture itself"):
        PosteriorMixture.of([first, PosteriorMixture.of([first, second])])
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], ["a", "b"], [1.0, float("inf")], [1e308, 1e308], "alike"):
        with pytest.raises(SwagError, match='"uniform" or 2 numbers'):
            PosteriorMixture.of([first, second], weights)


def test_what_no_mixture_can_have_written_is_refused(members):
    # Red for: a check that is left out; each of these would be another posterior, or an error of another kind.
    mixture = PosteriorMixture.of(members)
    tensors, metadata = mixture.tensors(), mixture.metadata()

    def read(tensors=tensors, **changed):
        return PosteriorMixture.from_tensors(
            tensors, mixture.record, mixture.adapter, {**metadata, **changed}, where="the file"
        )

    assert read().digest == mixture.digest
    described = metadata["members"]
    wrong = [
        {"members": described[:1]},
        {"members": "three"},
        {"weights": [1.0, 1.0]},
        {"weights": None},
        {"other": 1},
        {"members": [{**described[0], "kind": "mixture"}, *described[1:]]},
        {"members": [{**described[0], "kind": ["swag"]}, *described[1:]]},
        {"members": [{**described[0], "scale": -1.0}, *described[1:]]},
        {"members": [{**described[0], "scale": "1"}, *described[1:]]},
        {"members": [{"kind": "swag"}, *described[1:]]},
        {"members": [{**described[0], "metadata": {}}, *described[1:]]},
        {"storage": {"member-7": {}}},
        {"tensors": {**tensors, "mean/x": torch.ones(1)}},
        {"tensors": {name: tensor for name, tensor in tensors.items() if not name.startswith("member-2/")}},
    ]
    for change in wrong:
        with pytest.raises(PosteriorFormatError):
            read(**change)


def test_stacking_finds_the_maximum_of_the_penalised_likelihood():
    # Red for: a penalty that is left out or counts once instead of for each member, too few iterations.
    likelihoods = softmax(np.random.default_rng(0).normal(size=(3, 80)), axis=0)
    grid = np.linspace(0.001, 0.998, 400)
    best, value = None, -np.inf
    for first in grid:
        second = grid[grid < 0.9995 - first]
        weights = np.stack([np.full_like(second, first), second, 1 - first - second])
        objective = np.log(weights.T @ likelihoods).sum(1) + 3.0 * np.log(weights).sum(0)
        if objective.max() > value:
            best, value = weights[:, objective.argmax()], objective.max()
    np.testing.assert_allclose(stacking_weights(likelihoods, 3.0), best, atol=4e-3)


def test_stack_prefers_the_member_that_is_right_and_tune_takes_the_result(run, members, texts):
    # Red for: weights in another order than the members, draws of another member, a mixture that tune cannot draw from.
    model, _, tokenizer = run
    rows = [dict(tokenizer(text)) for text in texts[:24]]
    labels = MonteCarloPredictor(model, members[1], progress=False).predict(rows).probabilities.argmax(1)
    data = [{**row, "labels": int(label)} for row, label in zip(rows, labels, strict=True)]
    mixture = stack(PosteriorMixture.of(members), model, data, progress=False, penalty=0.5)
    assert np.argmax(mixture.member_weights) == 1 and mixture.member_weights[1] > 0.6
    with pytest.warns(UserWarning):  # numbers of draws, and what is not better on so little data
        tuned = tune(mixture, model, data, progress=False)
    assert tuned.tuning.center == "mean" and {each.center for each in tuned.tuning.candidates} == {"mean"}
    assert tuned.member_weights == mixture.member_weights
    with pytest.raises(SwagError, match="members of a PosteriorMixture, got a SwagPosterior"):
        stack(members[0], model, data)
    with pytest.raises(SwagError, match="penalty must be finite and > 0"):
        stack(mixture, model, data, penalty=0)


def test_mix_makes_a_mixture_of_folders(run, members, tmp_path, capsys):
    # Red for: weights that are not passed on, a tokenizer that is left behind.
    for number, member in enumerate(members[:2]):
        member.save_pretrained(tmp_path / str(number))
    run[2].save_pretrained(tmp_path / "1")
    folders = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert main(["mix", *folders, "--output", str(tmp_path / "mixed"), "--weights", "3", "1"]) == 0
    assert "MultiSWAG of 2 members with the weights 0.75, 0.25" in capsys.readouterr().out
    assert load_posterior(tmp_path / "mixed").member_weights == (0.75, 0.25)
    assert (tmp_path / "mixed" / "tokenizer_config.json").exists()
    assert main(["mix", folders[0], "--output", str(tmp_path / "alone")]) == 1
    assert "2 to 64 members, got 1" in capsys.readouterr().err


def test_a_list_of_posteriors_is_mixed_where_it_is_loaded(members, tmp_path):
    # Red for: a list that is taken for a name; weights that are ignored for a mixture that lies there.
    for number, member in enumerate(members):
        member.save_pretrained(tmp_path / str(number), dtype="float32")
    mixture = PosteriorMixture.from_pretrained([tmp_path / str(number) for number in range(3)], weights=WEIGHTS)
    assert mixture.digest == PosteriorMixture.of(members, WEIGHTS).digest
    mixture.save_pretrained(tmp_path / "mixed")
    assert PosteriorMixture.from_pretrained(tmp_path / "mixed").member_weights == WEIGHTS
    with pytest.raises(SwagError, match="weights are for a list of members"):
        PosteriorMixture.from_pretrained(tmp_path / "mixed", weights=WEIGHTS)
    with pytest.raises(PosteriorFormatError, match="PosteriorMixture reads kind 'mixture'"):
        PosteriorMixture.from_pretrained(tmp_path / "0")


def test_a_generator_of_posteriors_is_mixed_like_a_list(members):
    # Red for: a TypeError of len().
    assert PosteriorMixture.of((member for member in members), WEIGHTS).digest == PosteriorMixture.of(members, WEIGHTS).digest


def test_a_mixture_of_fewer_members_leaves_no_adapter_of_another_behind(members, tmp_path):
    # Red for: member-2 of the mixture before, which plain PEFT would still open; a file of the user's removed with it.
    PosteriorMixture.of(members).save_pretrained(tmp_path)
    (tmp_path / "member-2" / "notes.txt").write_text("mine")
    PosteriorMixture.of(members[:2]).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("member-*/*")).count("adapter_model.safetensors") == 2
    assert [path.name for path in (tmp_path / "member-2").iterdir()] == ["notes.txt"]
    (tmp_path / "member-2" / "notes.txt").unlink()
    members[0].save_pretrained(tmp_path)
    assert not list(tmp_path.glob("member-*"))
    assert load_posterior(tmp_path).digest == members[0].digest
