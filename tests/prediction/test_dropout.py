"""Dropout while drawing, against slow loops in which every mask is applied by hand."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, copy_of, ragged, tiny, wide_draws
from conftest import lora_model
from lively import short_run
from peft import LoHaConfig, get_peft_model
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from swag_trainer import MonteCarloPredictor, PointPosterior, Sampling, SwagError
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.dropout import DropoutMasks
from swag_trainer.prediction.dropout_masks import keep_masks, mask_key
from swag_trainer.prediction.packed.sampler import PackedSampler
from swag_trainer.prediction.sequential import SequentialSampler
from swag_trainer.tasks import task_named

SEED = 3
TASK = task_named(None)
KINDS = ("lora", "hidden", "attention")

# Modules in the order in which they drop out in a forward.
BERT = [
    "bert.embeddings.dropout",
    *(
        f"bert.encoder.layer.{layer}.{name}"
        for layer in range(3)
        for name in (
            "attention.self.query.lora_dropout",
            "attention.self.value.lora_dropout",
            "attention.self",
            "attention.output.dropout",
            "output.dropout",
        )
    ),
    "dropout",
]
GPT2 = [
    "transformer.drop",
    *(
        f"transformer.h.{layer}.{name}"
        for layer in range(3)
        for name in ("attn.c_attn.lora_dropout", "attn", "attn.resid_dropout", "mlp.dropout")
    ),
]


def kind_of(name):
    return "lora" if "lora_" in name else "attention" if name.endswith(("self.dropout", "attn_dropout")) else "hidden"


def dropping(architecture, kinds=KINDS, **lora):
    """A tiny model in which only some kinds of dropout are active."""
    model = tiny(architecture, **{"lora_dropout": 0.3} | lora)
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and kind_of(name.removesuffix(".default")) not in kinds:
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.2 if "attention" in kinds else 0.0
    return model


def sampler_of(kind, model, draws, **arguments):
    weights = copy_of(model)
    return kind(weights, draws, masks=DropoutMasks(weights, task=TASK, seed=SEED), **arguments)


def shortened(batch, row):
    """One row of a batch, without its padding."""
    is_text = batch["attention_mask"][row].bool()
    return {name: value[row : row + 1, is_text] for name, value in batch.items()}


def by_hand(model, draws, batch, order):
    """Logits of each row alone, in training mode, by attention that is written out, with every mask put in by hand. Shape (S, B, C)."""
    twin = copy.deepcopy(model)
    twin.get_base_model().set_attn_implementation("eager")
    twin.train()
    weights, logits = AdapterWeights(twin), torch.empty(len(draws), len(batch["input_ids"]), 3)
    for number, draw in enumerate(draws):
        weights.write(weights.layout.unflatten(draw))
        for row in range(logits.shape[1]):
            names = iter(order)

            def masked(x, p=0.5, training=True, inplace=False, *, names=names, number=number):
                key = mask_key(SEED, number, next(names), 0)
                assert training
                shape = x.shape[1:] if x.ndim == 4 else x.shape[-1:]
                return x * keep_masks([key], shape, p, x.device)[0] / (1 - p) if p else x

            with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
                patch.setattr(torch.nn.functional, "dropout", masked)
                logits[number, row] = twin(**shortened(batch, row)).logits[0]
            assert next(names, None) is None
    return logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "order"), [("bert", BERT), ("gpt2", GPT2)])
def test_each_kind_of_dropout_is_that_of_a_slow_loop(architecture, order, kind):
    # Red for: a kind that stays off, masks of another draw or module, a mask for each example or position, 1 - p left out, padding
    # that moves the positions of attention, SDPA that does not scale its scores.
    model, batch = dropping(architecture, [kind]), ragged()
    draws = wide_draws(copy_of(model), 3)
    expected = by_hand(model, draws, batch, order)
    without = SequentialSampler(copy_of(model), draws)(batch)
    assert (expected - without).abs().max() > 1e-2
    packed = sampler_of(PackedSampler, model, draws)
    torch.testing.assert_close(packed(batch), expected, rtol=0, atol=1e-4)
    assert packed.obstacle is None
    torch.testing.assert_close(sampler_of(SequentialSampler, model, draws)(batch), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lora", [{}, {"layers_to_transform": [2]}], ids=["all layers", "the last"])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in ("t5", "bart")])
def test_packed_draws_have_the_masks_of_single_ones(architecture, lora):
    # Red for: a prefix that is the same for all draws although it drops out, masks of a module that is called more than once, of what
    # runs under vmap, of a chunk that begins with another draw than the first.
    if architecture == "albert" and lora:
        return  # has one layer, which is called three times
    model, batch = dropping(architecture, **lora), ragged()
    draws = wide_draws(copy_of(model))
    packed, sequential = (sampler_of(kind, model, draws) for kind in (PackedSampler, SequentialSampler))
    packed._chunks.max_tokens = 3 * batch["input_ids"].numel()
    for _ in range(2):
        torch.testing.assert_close(packed(batch), sequential(batch), rtol=0, atol=1e-4)
    if architecture == "deberta-v3" and lora:
        assert "the same for all rows drops out" in packed.obstacle  # its relative positions, in layers without an adapter
    else:
        assert packed.obstacle is None and packed._strategies[0].cache_prefix


def test_the_layers_before_the_adapter_run_once_where_nothing_in_them_drops_out():
    # Red for: dropout that switches the prefix cache off; a prefix that ends before the first dropout.
    batch = ragged()
    for kinds, rows in ((["lora"], [5, 5, 35]), (KINDS, [35, 35, 35])):
        model = dropping("llama", kinds, layers_to_transform=[2])
        seen, forward = [], LlamaDecoderLayer.forward

        def counted(self, x, *args, forward=forward, seen=seen, **kwargs):
            output = forward(self, x, *args, **kwargs)
            seen.append(len(x))  # not before: it may end where the draws begin
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LlamaDecoderLayer, "forward", counted)
            sampler = sampler_of(PackedSampler, model, wide_draws(copy_of(model)), max_tokens=10_000)
            sampler(batch)
            seen.clear()
            sampler(batch)
        assert seen == rows and sampler.obstacle is None


@pytest.mark.parametrize("kind", [PackedSampler, SequentialSampler])
def test_neither_padding_nor_company_nor_order_changes_a_prediction(kind):
    # Red for: positions of attention that are counted from the padding, masks that depend on the place of a row.
    model, batch = dropping("llama"), ragged()
    sampler = sampler_of(kind, model, wide_draws(copy_of(model)))
    expected = sampler(batch)
    lengths = batch["attention_mask"].sum(1)
    left = {
        name: torch.stack([row.roll(11 - int(n)) for row, n in zip(value, lengths, strict=True)])
        for name, value in batch.items()
    }
    assert not left["attention_mask"][1, 0]
    torch.testing.assert_close(sampler(left), expected, rtol=0, atol=1e-4)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(
        sampler({name: value[order] for name, value in left.items()}), expected[:, order], rtol=0, atol=1e-4
    )
    for row in range(5):
        torch.testing.assert_close(sampler(shortened(batch, row))[:, 0], expected[:, row], rtol=0, atol=1e-4)
    assert getattr(sampler, "obstacle", None) is None


def test_attention_has_the_same_masks_in_either_implementation():
    # Red for: masks that belong to the module that holds the rate, which SDPA does not call; a causal or padding mask left out.
    for architecture in ("gpt2", "llama", "bert"):
        model, eager = dropping(architecture), dropping(architecture)
        eager.get_base_model().set_attn_implementation("eager")
        draws = wide_draws(copy_of(model), 2)
        found = [sampler_of(SequentialSampler, each, draws)(ragged()) for each in (model, eager)]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)


def test_a_variant_of_lora_that_asks_whether_it_trains_drops_out():
    # Red for: DoRA in evaluation mode, which leaves its dropout out.
    model = dropping("bert", ["lora"], use_dora=True)
    draws = wide_draws(copy_of(model), 2)
    found = sampler_of(PackedSampler, model, draws)(ragged())
    assert (found - SequentialSampler(copy_of(model), draws)(ragged())).abs().max() > 1e-2
    assert not model.training and not any(module.training for module in model.modules())


def test_factors_are_not_rounded_to_bfloat16():
    # Red for: 131 x 1.109375, which is what bfloat16 makes of 1 / 0.9.
    weights = copy_of(dropping("bert"))
    masks = DropoutMasks(weights, task=TASK, seed=SEED)
    with masks.running(range(1), ragged()):
        masks._calls.append(weights.model)  # as within its forward
        dropped = nn.functional.dropout(torch.full((1, 99), 131.0, dtype=torch.bfloat16), 0.1)
    assert dropped.dtype == torch.bfloat16 and set(dropped.flatten().tolist()) == {0.0, 146.0}


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    """(model, posterior, rows)."""
    model, posterior, tokenizer = short_run(base_folder, texts, tmp_path_factory.mktemp("run"))
    return model, posterior, [dict(tokenizer(text)) for text in texts]


@pytest.mark.parametrize("kind", [pytest.param("point", marks=pytest.mark.slow), "posterior", "posterior at scale 0"])
def test_every_draw_has_a_mask_of_its_own_that_nothing_but_the_seed_changes(run, kind):
    # Red for: one mask for all draws, one pass at scale 0, masks that go on from batch to batch or change with the batches or the
    # number of draws, a random state that is used up.
    model, posterior, rows = run
    chosen = PointPosterior.at(posterior.mean_vector(), posterior) if kind == "point" else posterior
    sampling = Sampling(4, SEED, scale=0 if kind == "posterior at scale 0" else None, design="iid", dropout=True)
    state = torch.get_rng_state()
    predictor = MonteCarloPredictor(model, chosen, sampling, progress=False)
    draws = predictor.predict(rows, return_draws=True).draw_probabilities
    assert draws.shape[0] == 4 and np.abs(draws - draws[:1])[1:].max() > 1e-3
    assert (predictor.predict(rows).mutual_information > 0).all()
    for changes in ({"batch_size": 2}, {"max_tokens": 1}, {"num_samples": 6}, {"num_blocks": 2}):
        other = MonteCarloPredictor(model, chosen, **{"sampling": sampling, "progress": False} | changes)
        found = other.predict(rows[::-1], return_draws=True).draw_probabilities[:4, ::-1]
        np.testing.assert_allclose(found, draws, atol=1e-5)
    other = MonteCarloPredictor(model, chosen, sampling, seed=SEED + 1, progress=False).predict(rows, return_draws=True)
    assert np.abs(other.draw_probabilities - draws).max() > 1e-3
    assert torch.equal(torch.get_rng_state(), state)


def test_each_block_has_masks_of_its_own_and_the_same_alone(run):
    # Red for: a second block with the masks of the first; masks of a block that depend on which blocks were run before.
    model, posterior, rows = run
    point = PointPosterior.at(posterior.mean_vector(), posterior)
    batch = {name: torch.tensor([value]) for name, value in rows[0].items()}
    both = MonteCarloPredictor(model, point, num_samples=3, num_blocks=2, dropout=True)
    logits = both.logits(batch)
    assert len(logits) == 6 and len({tuple(draw.flatten().tolist()) for draw in logits}) == 6
    for block in (1, 0):
        torch.testing.assert_close(both._logits(batch, block)[0], logits[3 * block :][:3], rtol=0, atol=1e-5)


def test_many_masks_average_to_what_torchs_own_do(run):
    # Red for: a rate or a factor of another size. Masks that positions share are others than torch's, hence the tolerance.
    model, posterior, rows = run
    point = PointPosterior.at(posterior.mean_vector(), posterior)
    predictor = MonteCarloPredictor(model, point, num_samples=400, dropout=True)
    twin = copy.deepcopy(model)
    weights = AdapterWeights(twin)
    weights.write(weights.layout.unflatten(point.vector))
    twin.train()
    for row in rows[:6]:
        batch = {name: torch.tensor([value]) for name, value in row.items()}
        ours = predictor.logits(batch)[:, 0].double()
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(0)
            torchs = twin(**{name: value.expand(400, -1) for name, value in batch.items()}).logits.double()
        error = (ours.var(0) / 400 + torchs.var(0) / 400).sqrt()
        assert ((ours.mean(0) - torchs.mean(0)).abs() < 5 * error + 0.1 * torchs.std(0)).all()
        assert (0.5 < ours.std(0) / torchs.std(0)).all() and (ours.std(0) / torchs.std(0) < 3).all()


@pytest.mark.parametrize("kind", ["point", "posterior"])
def test_a_model_that_drops_nothing_out_is_refused(run, kind):
    # Red for: equal passes in the name of MC dropout; for draws that differ anyway, a check of their predictions.
    model, posterior, rows = run
    quiet = copy.deepcopy(model)
    for module in quiet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    chosen = PointPosterior.at(posterior.mean_vector(), posterior) if kind == "point" else posterior
    with pytest.raises(SwagError, match="nothing in this model drops out"):
        MonteCarloPredictor(quiet, chosen, num_samples=2, dropout=True).predict(rows)


def another_class(model):
    model.get_base_model().dropout = nn.AlphaDropout(0.1)


def recurrent(model):
    model.get_base_model().bert.pooler.add_module("memory", nn.LSTM(4, 4, num_layers=2, dropout=0.2))


def a_kernel(model):
    model.get_base_model().config._attn_implementation = "flash_attention_2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_class, "AlphaDropout"),
        (recurrent, "LSTM, drops out at a rate of 0.2"),
        (a_kernel, "attn_implementation=.sdpa."),
    ],
)
def test_dropout_that_no_mask_replaces_is_refused(run, change, message):
    # Red for: a part that stays off in silence, or draws its masks for each example.
    model = copy.deepcopy(run[0])
    change(model)
    with pytest.raises(SwagError, match=message):
        MonteCarloPredictor(model, run[1], dropout=True)
    MonteCarloPredictor(model, run[1])


def test_an_adapter_whose_dropout_no_mask_replaces_is_refused(base_folder):
    # Red for: LoHa, which drops whole ranks out, taken for a model without dropout in its adapter.
    base = lora_model(base_folder).unload()
    for rate, expected in ((0.2, pytest.raises(SwagError, match="rank_dropout")), (0.0, nullcontext())):
        model = get_peft_model(
            copy.deepcopy(base), LoHaConfig(task_type="SEQ_CLS", target_modules=["query"], rank_dropout=rate)
        )
        with expected:
            DropoutMasks(copy_of(model.eval()), task=TASK, seed=0)


class Functional(nn.Module):
    """A layer that drops out in its own way."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        return self.act(x)


def heads_in_rows(x):
    return nn.functional.dropout(x.softmax(-1), 0.1, False)


def whole_channels(x):
    return nn.functional.dropout1d(x, 0.1, False)


def attends_later(x):
    return nn.functional.scaled_dot_product_attention(x, x, x) if x.shape[1] == 5 else x


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (heads_in_rows, "rows and heads in one dimension"),
        (whole_channels, "dropout1d"),
        (attends_later, "did not attend in the first"),
    ],
)
def test_a_layer_that_drops_out_in_another_way_is_refused(act, message):
    # Red for: masks of the wrong shape, or none, for what no architecture of the other tests does.
    model = dropping("bert")
    model.get_base_model().bert.encoder.layer[1].output.dense = nn.Sequential(
        Functional(act), model.get_base_model().bert.encoder.layer[1].output.dense
    )
    sampler = sampler_of(PackedSampler, model, wide_draws(copy_of(model)))
    with pytest.raises(SwagError, match=message):
        sampler({"input_ids": torch.full((2, 7), 9)})
        sampler({"input_ids": torch.full((2, 5), 9)})


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
