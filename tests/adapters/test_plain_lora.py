import copy
from dataclasses import replace

import pytest
import torch

from swag_trainer.adapters.plain_lora import base_changed_by, is_reproducible, needs_lift, rank_axis, to_plain_lora
from swag_trainer.errors import AdapterMismatchError, PosteriorFormatError, SwagError
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.moments import RunningMoments
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import InitialWeights, SavedAdapter
from swag_trainer.posterior.swag import SwagPosterior, SwagRecord
from swag_trainer.posterior.tuning import CalibratedThreshold, ConformalQuantile, Tuning

# A linear layer, an embedding and a convolution as PEFT spells them, with rank 2; a head and the magnitude of DoRA, which have none.
A, B = "base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight"
SHAPES = {
    A: (2, 5),
    B: (3, 2),
    "base_model.model.words.lora_embedding_A": (2, 7),
    "base_model.model.words.lora_embedding_B": (5, 2),
    "base_model.model.conv.lora_A.weight": (2, 3, 3, 3),
    "base_model.model.conv.lora_B.weight": (4, 2, 1, 1),
    "base_model.model.layer.lora_magnitude_vector": (3,),
    "base_model.model.head.weight": (2, 3),
}
CONFIG = {
    "peft_type": "LORA",
    "init_lora_weights": "olora",
    "base_model_name_or_path": "user/base",
    "r": 2,
    "lora_alpha": 6,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def random_weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}


def some_posterior(*, rank=3, keys=tuple(SHAPES), **config):
    """(layout, gaussian, adapter, initial): six random weight vectors, the adapter at their mean."""
    layout = WeightLayout.of({key: torch.empty(SHAPES[key]) for key in keys})
    moments = RunningMoments(layout.size, rank)
    for seed in range(6):
        moments.fold(layout.flatten(random_weights(seed)))
    gaussian = LowRankGaussian(moments.mean, moments.variance, moments.deviations)
    adapter = SavedAdapter(CONFIG | config, random_weights(0) | layout.unflatten(gaussian.mean))
    initial = {key: weight for key, weight in random_weights(9).items() if "lora_" in key and weight.dim() > 1}
    return layout, gaussian, adapter, InitialWeights(initial, {"layer": [1e-7, 2.0, 0.1, 0.2, 0.3, 0.4]})


def lift(layout, gaussian, adapter, initial):
    """Layout, Gaussian and adapter of the plain LoRA."""
    collection = SwagRecord(6, "Every(steps=1)", 1, 6)
    plain = to_plain_lora(SwagPosterior(layout, gaussian, PosteriorRecord(), collection, replace(adapter, initial=initial)))
    return plain.layout, plain.gaussian, plain.adapter


def contributions(weights, config):
    """s B A of every layer, written out."""
    scaling = config["lora_alpha"] / config["r"]
    return {
        "layer": scaling * weights[B] @ weights[A],
        "words": scaling
        * weights["base_model.model.words.lora_embedding_B"]
        @ weights["base_model.model.words.lora_embedding_A"],
        "conv": scaling
        * torch.einsum(
            "or,rikl->oikl",
            weights["base_model.model.conv.lora_B.weight"][:, :, 0, 0],
            weights["base_model.model.conv.lora_A.weight"],
        ),
    }


def test_every_weight_vector_contributes_what_it_did_less_what_the_initialisation_took():
    # Red for: a missing minus, A0 along the wrong axis, alpha not doubled, an embedding or a convolution taken for a linear layer.
    layout, gaussian, adapter, initial = some_posterior()
    lifted_layout, lifted, plain = lift(layout, gaussian, adapter, initial)
    noise = torch.tensor([0.0, 0.7, -1.3])
    before = layout.unflatten(gaussian.mean + noise @ gaussian.deviations)
    after = lifted_layout.unflatten(lifted.mean + noise @ lifted.deviations)
    taken = contributions({**before, **initial.tensors}, adapter.config)
    found = contributions(after, plain.config)
    for name, expected in contributions(before, adapter.config).items():
        torch.testing.assert_close(found[name], expected - taken[name], rtol=1e-5, atol=1e-5)  # float32 sums in another order


def test_the_initial_half_does_not_vary_and_the_trained_half_varies_as_before():
    # Red for: A0 added to a deviation, or a variance in the half that is known exactly.
    layout, gaussian, adapter, initial = some_posterior()
    lifted_layout, lifted, _ = lift(layout, gaussian, adapter, initial)
    mean, variance, deviations = (lifted_layout.unflatten(part) for part in (lifted.mean, lifted.variance, lifted.deviations))
    assert torch.equal(mean[A][2:], initial.tensors[A]) and torch.equal(mean[B][:, 2:], -initial.tensors[B])
    assert not variance[A][2:].any() and not variance[B][:, 2:].any()
    assert not deviations[A][:, 2:].any() and not deviations[B][:, :, 2:].any()
    assert torch.equal(mean[A][:2], layout.unflatten(gaussian.mean)[A])
    assert torch.equal(variance[B][:, :2], layout.unflatten(gaussian.variance)[B])
    assert torch.equal(deviations[B][:, :, :2], layout.unflatten(gaussian.deviations)[B])


def test_weights_that_are_no_lora_matrix_pass_through():
    # Red for: PEFT's own conversion, which keeps nothing but lora_A and lora_B and so loses the trained head.
    layout, gaussian, adapter, initial = some_posterior()
    lifted_layout, lifted, plain = lift(layout, gaussian, adapter, initial)
    for key in ("base_model.model.head.weight", "base_model.model.layer.lora_magnitude_vector"):
        assert plain.tensors[key] is adapter.tensors[key]
        for part in ("mean", "variance", "deviations"):
            before, after = layout.unflatten(getattr(gaussian, part)), lifted_layout.unflatten(getattr(lifted, part))
            assert torch.equal(after[key], before[key])


def test_the_adapter_is_at_the_mean_and_another_one_by_its_digest():
    # Red for: an adapter's file that stays as it was, beside a posterior of twice its rank.
    layout, gaussian, adapter, initial = some_posterior()
    lifted_layout, lifted, plain = lift(layout, gaussian, adapter, initial)
    for key, weight in lifted_layout.unflatten(lifted.mean).items():
        assert torch.equal(plain.tensors[key], weight)
    assert plain.digest != adapter.digest
    assert plain.config["init_lora_weights"] is True and plain.base_model == "user/base"
    assert base_changed_by(plain.config) is None


@pytest.mark.parametrize("rank", [0, 2])
def test_a_diagonal_posterior_stays_one(rank):
    # Red for: a K of zero rows that becomes something else.
    layout, gaussian, adapter, initial = some_posterior(rank=rank)
    assert lift(layout, gaussian, adapter, initial)[1].rank == rank


def test_a_posterior_over_some_of_the_weights_is_lifted_with_the_whole_adapter():
    # Red for: the adapter lifted only where the posterior varies, so that its own ranks differ.
    layout, gaussian, adapter, initial = some_posterior(keys=(B, "base_model.model.head.weight"))
    lifted_layout, lifted, plain = lift(layout, gaussian, adapter, initial)
    assert lifted_layout.keys == layout.keys
    assert dict(zip(lifted_layout.keys, lifted_layout.shapes, strict=True))[B] == (3, 4)
    assert plain.tensors[A].shape == (4, 5) and plain.tensors["base_model.model.conv.lora_B.weight"].shape == (4, 4, 1, 1)


def test_scale_and_temperature_stay_and_what_was_calibrated_for_other_draws_goes():
    # Red for: a guarantee about the risk or the coverage of predictions that no draw of the plain LoRA gives.
    layout, gaussian, adapter, initial = some_posterior()
    calibrated = {
        "thresholds": [CalibratedThreshold("risk", 0.05, 0.9, 0.8, 0.04, 0.9)],
        "conformal": [ConformalQuantile("aps", 0.9, 0.7, 1.2)],
    }
    tuning = Tuning(1.5, "me/texts", num_examples=9, num_calibration=9, num_samples=8, seed=0, nll=0.5, **calibrated)
    record = PosteriorRecord(scale=2.0, tuning=tuning)
    plain = to_plain_lora(
        SwagPosterior(layout, gaussian, record, SwagRecord(6, "Every(steps=1)", 1, 6), replace(adapter, initial=initial))
    )
    assert plain.record.scale == 2.0 and plain.record.tuning == replace(tuning, thresholds=[], conformal=[])
    assert record.tuning.thresholds == calibrated["thresholds"]


def test_nothing_that_goes_in_is_changed():
    # Red for: a deviation that is extended in place, or a shared config.
    layout, gaussian, adapter, initial = some_posterior()
    before = copy.deepcopy((gaussian.mean, gaussian.deviations, dict(adapter.config), dict(adapter.tensors), initial.tensors))
    lift(layout, gaussian, adapter, initial)
    after = (gaussian.mean, gaussian.deviations, dict(adapter.config), dict(adapter.tensors), initial.tensors)
    assert all(torch.equal(one, other) for one, other in zip(before[:2], after[:2], strict=True)) and before[2] == after[2]
    for one, other in zip(before[3:], after[3:], strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_every_layer_keeps_its_scaling_patterns_included(use_rslora):
    # Red for: alpha doubled under rsLoRA, a pattern forgotten, or doubled where sqrt(2) is due (as PEFT does).
    patterns = {"rank_pattern": {"conv": 3, "words": 2}, "alpha_pattern": {"conv": 5.0, "layer": 1}}
    config = CONFIG | patterns | {"use_rslora": use_rslora}
    plain = lift(*some_posterior(**patterns, use_rslora=use_rslora))[2].config

    def scaling(of, name):
        rank = of["rank_pattern"].get(name, of["r"])
        return of["alpha_pattern"].get(name, of["lora_alpha"]) / (rank**0.5 if use_rslora else rank)

    for name in ("layer", "words", "conv", "another"):
        assert scaling(plain, name) == pytest.approx(scaling(config, name), rel=1e-12)
        assert plain["rank_pattern"].get(name, plain["r"]) == 2 * config["rank_pattern"].get(name, config["r"])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"init_lora_weights": True}, "did not change its base"),
        ({"init_lora_weights": "loftq"}, "replace_lora_weights_loftq"),
        ({"target_parameters": ["experts.up"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"peft_type": "ADALORA"}, "peft_type='ADALORA'"),
    ],
)
def test_what_plain_lora_cannot_express_is_refused_with_the_reason(config, reason):
    # Red for: an export that gives other answers than the adapter.
    with pytest.raises(SwagError, match=reason):
        lift(*some_posterior(**config))


def test_initial_weights_of_another_adapter_are_refused():
    # Red for: A0 of another rank, or of other layers, behind this adapter's A.
    layout, gaussian, adapter, initial = some_posterior()
    wider = InitialWeights(dict(initial.tensors) | {A: torch.zeros(4, 5)}, initial.pristine)
    with pytest.raises(AdapterMismatchError, match=r"layer\.lora_A.*\(2, 5\).*\(4, 5\)"):
        lift(layout, gaussian, adapter, wider)
    fewer = InitialWeights({key: weight for key, weight in initial.tensors.items() if key != B}, initial.pristine)
    with pytest.raises(AdapterMismatchError, match=r"layer\.lora_B.*\(3, 2\).*None"):
        lift(layout, gaussian, adapter, fewer)
    more = InitialWeights(dict(initial.tensors) | {"base_model.model.other.lora_A.weight": torch.zeros(2, 5)}, initial.pristine)
    with pytest.raises(AdapterMismatchError, match=r"other\.lora_A.*None.*\(2, 5\)"):
        lift(layout, gaussian, adapter, more)


def test_a_rank_that_peft_would_not_make_again_is_refused():
    # Red for: r=4 on a weight with 2 rows, where OLoRA leaves a rank of 2 and plain LoRA of "rank 8" would not load.
    with pytest.raises(SwagError, match=r"rank 2, the config says \[4\]"):
        lift(*some_posterior(r=4))


def test_initial_weights_travel_as_tensors():
    # Red for: a fingerprint rounded to float32, or a name that the posterior's own tensors have.
    initial = some_posterior()[3]
    fingerprint = {"layer": [1e-7, 1 / 3, 0.1]}
    tensors = InitialWeights(initial.tensors, fingerprint).as_tensors()
    back = InitialWeights.from_tensors(tensors | {"mean/x": torch.zeros(1)}, where="'file'")
    assert back.tensors.keys() == initial.tensors.keys() and back.pristine == fingerprint
    assert all(torch.equal(back.tensors[key], weight) for key, weight in initial.tensors.items())
    assert InitialWeights.from_tensors({"mean/x": torch.zeros(1)}, where="'file'") is None


@pytest.mark.parametrize(
    "tensors",
    [
        {"initial/a": torch.zeros(2, 2), "pristine/b": torch.zeros(6)},
        {"initial/a": torch.zeros(2, 2).half(), "pristine/b": torch.zeros(6).double()},
        {"initial/a": torch.zeros(2), "pristine/b": torch.zeros(6).double()},
        {"initial/a": torch.zeros(2, 2)},
        {"pristine/b": torch.zeros(6).double()},
    ],
)
def test_damaged_initial_weights_are_refused(tensors):
    # Red for: what somebody else's file says taken as it comes.
    with pytest.raises(PosteriorFormatError, match="'file'"):
        InitialWeights.from_tensors(tensors, where="'file'")


@pytest.mark.parametrize(
    ("initialisation", "changes", "again", "lifted"),
    [
        (True, False, None, False),
        ("gaussian", False, None, False),
        ("orthogonal", False, None, False),
        ("olora", True, True, False),
        ("OLoRA", True, True, False),
        ("pissa", True, True, False),
        ("pissa_niter_16", True, False, True),
        ("corda", True, False, True),
        ("lora_ga", True, False, True),
    ],
)
def test_what_each_initialisation_does_to_the_base(initialisation, changes, again, lifted):
    # Red for: pissa_niter_16 taken for pissa, which is the same in every process.
    config = {"init_lora_weights": initialisation}
    assert base_changed_by(config) == (initialisation if changes else None)
    assert again is None or is_reproducible(initialisation) == again
    assert needs_lift(config) == lifted


def test_biases_beside_a_lora_matrix_have_no_rank():
    # Red for: lora_B.bias, a vector, taken for a matrix.
    assert rank_axis("base_model.model.layer.lora_B.bias") is None
    assert (rank_axis(A), rank_axis(B)) == (0, 1)
