"""NOLA and LoRA-XS: their maps against slow oracles, and training with the real Trainer and SwagCallback, to plain LoRA that everyone can load."""

import copy
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import labelled, lora_model, trainer_for
from peft import AutoPeftModelForSequenceClassification, set_peft_model_state_dict
from transformers import BertTokenizerFast, TrainerCallback, pipeline

from swag_trainer import (
    AdapterMismatchError,
    CoefficientPosterior,
    Evenly,
    LoraXs,
    MonteCarloPredictor,
    Nola,
    PosteriorFormatError,
    SwagCallback,
    SwagError,
    load_posterior,
    train_coefficients,
)
from swag_trainer.adapters.coefficients import CoefficientLinear, FixedLinear, coefficient_map
from swag_trainer.posterior.coefficient_map import LoraPair, read_map
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.nola import NolaMap, uniform
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.storage import read_file, write_file
from swag_trainer.prediction.packed.sampler import PackedSampler

METHODS = {"nola": Nola(num_coefficients=50, seed=3), "lora-xs": LoraXs()}
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


class Witness(TrainerCallback):
    """Writes down the trained parameters after every step, by their names in the model."""

    def __init__(self):
        self.steps = {}

    def on_step_end(self, args, state, control, *, model, **kwargs):
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.steps[state.global_step] = {name: parameter.detach().clone() for name, parameter in trained.items()}


def coefficient_run(base_folder, texts, tokenizer, folder, method, *, resume_from=None, **arguments):
    """A Trainer with a model whose coefficients train, its callback and a witness."""
    model, swag, witness = lora_model(base_folder), SwagCallback(Evenly(start=0.4), rank=4, resume_from=resume_from), Witness()
    train_coefficients(model, method)
    rows = labelled(texts, tokenizer)
    evaluated = {"eval_strategy": "steps", "eval_steps": 12, "eval_rows": rows[:4], "learning_rate": 5e-2}
    trainer = trainer_for(model, rows, tokenizer, folder, callbacks=[witness, swag], **evaluated | arguments)
    return SimpleNamespace(trainer=trainer, swag=swag, witness=witness, rows=rows, folder=folder, method=method)


@pytest.fixture(scope="module", params=METHODS)
def run(request, base_folder, texts, tmp_path_factory):
    """A finished run of 24 steps with a checkpoint at step 16, in the middle of its collection."""
    tokenizer, folder = BertTokenizerFast.from_pretrained(base_folder), tmp_path_factory.mktemp(request.param)
    method = METHODS[request.param]
    made = coefficient_run(base_folder, texts, tokenizer, folder, method, save_strategy="steps", save_steps=16)
    made.trainer.train()
    return made


def test_bases_of_nola_are_whole_numbers_of_philox_and_the_same_on_every_machine():
    # Red for: another generator, key or order of the numbers; a bound that is that of the rows.
    key = int.from_bytes(hashlib.sha256(b"7:a").digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(3)
    whole = [number for each in map(int, raw) for number in (each % 2**32 >> 8, each >> 40)]
    expected = [(number - 2**23) / 2**23 * 0.5 for number in whole[:5]]
    assert uniform((5,), 0.5, seed=7, name="a").tolist() == expected
    layout = WeightLayout(("a.lora_A.weight", "a.lora_B.weight"), ((2, 16), (3, 2)))
    mapping = NolaMap(layout, Nola(4, seed=1))
    assert mapping.digest == "c2b761d9419621f6db2381af1b2e51bd2c341dc25ecfc5a1971aafc261a300ee"
    for key, bound in (("a.lora_A.weight", 16**-0.5), ("a.lora_B.weight", 2**-0.5)):
        assert 0.8 * bound < mapping.basis(key).abs().max() <= bound


@pytest.mark.parametrize(("shapes", "count"), [([(1024, 1024)], 4096), ([(1024, 512)] * 5, 4096)])
def test_bases_that_would_take_gigabytes_are_neither_trained_nor_made_for_a_file(shapes, count):
    # Red for: 16 GB, and hours, for an adapter of 4 MB and a few thousand coefficients.
    layout = WeightLayout(tuple(f"layer.{n}.lora_A.weight" for n in range(len(shapes))), tuple(shapes))
    document = {"kind": "nola", "settings": NolaMap(layout, Nola(count)).settings(), "digest": "0"}
    with pytest.raises(PosteriorFormatError, match=r"the file asks for bases of [\d,]+ numbers"):
        read_map(document, layout, {}, dict.fromkeys(layout.keys, (1, count)), where="the file")
    pairs = [
        LoraPair(key, f"{key} B", torch.empty(shape, device="meta"), torch.empty(1, 1), None)
        for key, shape in zip(layout.keys, layout.shapes, strict=True)
    ]
    with pytest.raises(SwagError, match="Take fewer"):
        Nola(count).begin(pairs)


def test_weights_are_the_sum_of_coefficients_times_matrices():
    # Red for: a sum over another dimension; stacks of coefficients that are mixed.
    key, coefficients = "a.lora_A.weight", torch.randn(2, 1, 3)
    mapping = NolaMap(WeightLayout((key,), ((2, 5),)), Nola(3))
    basis, weights = mapping.basis(key), mapping.weight(key, coefficients)
    for draw in range(2):
        expected = sum(float(coefficients[draw, 0, k]) * basis[k].double() for k in range(3))
        torch.testing.assert_close(weights[draw].double(), expected, rtol=1e-5, atol=1e-6)


def test_lora_xs_is_the_decomposition_of_the_base_weight_around_a_core(base_folder):
    # Red for: singular values left out, or on both sides; vectors that are not the largest; a transposed base weight.
    model = lora_model(base_folder)
    layer = model.get_submodule(QUERY)
    values = 3 * 0.8 ** torch.arange(32)
    left, right = (torch.linalg.qr(torch.randn(32, 32))[0] for _ in range(2))
    layer.base_layer.weight.data = left @ values.diag() @ right.T
    train_coefficients(model, LoraXs())
    b, a = layer.lora_B["default"], layer.lora_A["default"]
    assert b.coefficients.shape == (4, 4) and b.coefficients.abs().max() < 1e-4 and type(a) is FixedLinear
    with torch.no_grad():
        b.coefficients.copy_(torch.eye(4))
    best = left[:, :4] @ values[:4].diag() @ right[:, :4].T
    torch.testing.assert_close(b.weight @ a.weight, best, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        b.coefficients.normal_()
    torch.testing.assert_close(
        b.weight @ a.weight, (left[:, :4] * values[:4]) @ _core(b, left, values) @ right[:, :4].T, rtol=1e-3, atol=1e-3
    )


def _core(b, left, values):
    """The core in the basis of the true vectors, whose signs may be others."""
    signs = torch.sign((b.basis * left[:, :4]).sum(0))
    return signs[:, None] * b.coefficients.detach() * signs


@pytest.mark.parametrize("name", METHODS)
def test_coefficients_alone_train_and_the_model_begins_with_the_function_of_its_base(base_folder, texts, tokenizer, name):
    # Red for: gradients in A or B, a frozen head, coefficients of B that do not begin at zero.
    model, rows = lora_model(base_folder).eval(), tokenizer(texts[:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        before = model(**rows).logits
    train_coefficients(model, METHODS[name])
    logits = model(**rows).logits
    torch.testing.assert_close(logits.detach(), before, rtol=0, atol=1e-4)
    logits.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    sides = {name.split(".")[-3] for name in trained if name.endswith(".coefficients")}
    assert sides == ({"lora_A", "lora_B"} if name == "nola" else {"lora_B"})
    assert all(name.endswith(".coefficients") or ".modules_to_save." in name for name in trained)
    model.set_adapter("default")  # PEFT then lets every parameter of the adapter train
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_posterior_is_that_of_the_coefficients_mapped_to_plain_lora(run):
    # Red for: weights collected in the place of coefficients, a mean of other steps, draws that are mapped to other weights.
    posterior, weights = run.swag.posterior, run.trainer.model
    steps = posterior.collection.steps
    assert isinstance(posterior, CoefficientPosterior) and len(steps) == posterior.num_collected > 10
    taken = {
        re.sub(r"(\.modules_to_save)?\.default", "", name): torch.stack(
            [run.witness.steps[step][name].double() for step in steps]
        )
        for name in run.witness.steps[1]
    }
    assert set(posterior.coefficient_layout.keys) == set(taken)
    for key, mean in posterior.coefficients.mean.items():
        torch.testing.assert_close(mean.double(), taken[key].mean(0), rtol=1e-5, atol=1e-6)
    drawn, mapped = posterior.coefficients.sample(3, seed=5), posterior.sample(3, seed=5)
    assert set(mapped) == {key.replace(".coefficients", ".weight") for key in drawn}
    for name, module in weights.named_modules():
        if isinstance(module, CoefficientLinear):
            key = name.replace(".default", "")
            for draw in range(3):
                expected = module.map.combine(drawn[f"{key}.coefficients"][draw].double(), module.basis.double())
                torch.testing.assert_close(mapped[f"{key}.weight"][draw].double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(mapped["base_model.model.classifier.weight"], drawn["base_model.model.classifier.weight"])
    assert posterior.adapter_holds_mean and not torch.equal(posterior.center("last"), posterior.mean_vector())
    torch.testing.assert_close(posterior.last_snapshot(), posterior.center("last"))
    assert torch.equal(posterior.draw(2, seed=0, scale=0).vectors[1], posterior.mean_vector())


def test_a_resumed_run_ends_with_the_posterior_of_an_uninterrupted_one(run, base_folder, texts, tokenizer, tmp_path):
    # Red for: coefficients that PEFT does not write into a checkpoint, or does not read.
    checkpoint = str(run.folder / "checkpoint-16")
    again = coefficient_run(base_folder, texts, tokenizer, tmp_path, run.method, resume_from=checkpoint)
    again.trainer.train(resume_from_checkpoint=checkpoint)
    one, other = run.swag.posterior, again.swag.posterior
    assert torch.equal(one.gaussian.mean, other.gaussian.mean) and torch.equal(
        one.gaussian.deviations, other.gaussian.deviations
    )
    assert one.digest == other.digest and one.adapter.digest == other.adapter.digest


def test_a_checkpoint_of_other_bases_is_refused(run, base_folder, texts, tokenizer, tmp_path):
    # Red for: coefficients that are taken for those of another seed, or a plain adapter that is passed over in silence.
    other = Nola(50, seed=4) if run.method == METHODS["nola"] else Nola(50)
    again = coefficient_run(base_folder, texts, tokenizer, tmp_path, other)
    with pytest.raises(AdapterMismatchError, match="other bases|without the"):
        again.trainer.train(resume_from_checkpoint=str(run.folder / "checkpoint-16"))
    with pytest.raises(AdapterMismatchError, match="without the"):
        again.trainer.model.load_adapter(str(run.folder), "default")


def test_plain_peft_opens_the_adapter_at_the_mean_and_every_checkpoint(run):
    # Red for: coefficients in the adapter of the posterior, or weights left out of the Trainer's own files.
    names = {*load_posterior(run.folder).adapter.tensors, *SavedAdapter.read(run.folder / "checkpoint-16").tensors}
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight", "classifier.weight", "classifier.bias")) for name in names)
    plain = AutoPeftModelForSequenceClassification.from_pretrained(
        run.folder, num_labels=3, ignore_mismatched_sizes=True
    ).eval()
    batch = run.trainer.data_collator([{key: row[key] for key in ("input_ids", "attention_mask")} for row in run.rows[:5]])
    with torch.no_grad():
        trained = run.trainer.model.eval()(**batch).logits
        torch.testing.assert_close(plain(**batch).logits, trained, rtol=0, atol=1e-6)
    saved = AutoPeftModelForSequenceClassification.from_pretrained(
        run.folder / "checkpoint-16", num_labels=3, ignore_mismatched_sizes=True
    )
    name = f"{QUERY}.lora_B.default"
    expected = run.trainer.model.get_submodule(name).map.weight(
        f"{QUERY}.lora_B.weight", run.witness.steps[16][f"{name}.coefficients"]
    )
    assert torch.equal(saved.get_parameter(f"{name}.weight"), expected)


def test_saved_and_pushed_it_predicts_the_same_bit_for_bit(run, hub, tokenizer, tmp_path):
    # Red for: bases of another seed after loading, a file that holds weights, save_model() that breaks the pair.
    posterior, kind = run.swag.posterior, run.swag.posterior.map.kind
    rows = run.rows[:6]
    predictor = MonteCarloPredictor(run.trainer.model, posterior, num_samples=4, seed=1)
    assert isinstance(predictor._logits.sampler, PackedSampler)
    here = predictor.predict(rows)
    assert isinstance(run.trainer.model.get_submodule(f"{QUERY}.lora_B.default"), CoefficientLinear)
    run.trainer.save_model(str(tmp_path / "saved"))
    tokenizer.save_pretrained(tmp_path / "saved")
    posterior.save_pretrained(tmp_path / "exact", dtype="float32")
    (tmp_path / "saved" / POSTERIOR_FILE).write_bytes((tmp_path / "exact" / POSTERIOR_FILE).read_bytes())
    loaded = load_posterior(tmp_path / "saved")
    assert isinstance(loaded, CoefficientPosterior) and loaded.digest == posterior.digest
    plain = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", num_labels=3, ignore_mismatched_sizes=True
    ).eval()
    there = MonteCarloPredictor(plain, loaded, num_samples=4, seed=1).predict(rows)
    assert np.array_equal(there.probabilities, here.probabilities)
    one_by_one = []
    for draw in range(4):
        set_peft_model_state_dict(plain, {key: weight[draw] for key, weight in loaded.sample(4, seed=1).items()})
        with torch.no_grad():
            one_by_one.append(plain(**run.trainer.data_collator(rows)).logits.softmax(-1))
    assert here.probabilities == pytest.approx(torch.stack(one_by_one).mean(0).numpy(), abs=1e-5)
    posterior.push_to_hub(f"user/{kind}")
    pushed = load_posterior(f"user/{kind}")
    assert pushed.digest == posterior.digest
    assert torch.equal(pushed.draw(3, seed=1).vectors, load_posterior(run.folder).draw(3, seed=1).vectors)
    assert (run.folder / POSTERIOR_FILE).stat().st_size < 40_000


def test_a_posterior_in_training_predicts_with_the_model_that_trains(run):
    # Red for: draws written into the coefficients, or a private copy that still has them.
    before = copy.deepcopy(run.trainer.model.state_dict())
    shifted = replace(
        run.swag.posterior, gaussian=replace(run.swag.posterior.gaussian, mean=run.swag.posterior.gaussian.mean * 2)
    )
    one, two = (
        MonteCarloPredictor(run.trainer.model, p, num_samples=2).predict(run.rows[:3]) for p in (shifted, run.swag.posterior)
    )
    assert not np.allclose(one.probabilities, two.probabilities, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in run.trainer.model.state_dict().items())


def edited(folder, target, edit):
    """The posterior of a folder with another document, as its author would have written it."""
    target.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (target / file).write_bytes((folder / file).read_bytes())
    tensors, document, _ = read_file(folder / POSTERIOR_FILE)
    edit(tensors, document)
    write_file(target / POSTERIOR_FILE, tensors, document)
    return target


def _set(**values):
    return lambda tensors, document: document["metadata"]["map"].update(values)


def _settings(**values):
    return lambda tensors, document: document["metadata"]["map"]["settings"].update(values)


def _drop_basis(tensors, document):
    del tensors[next(name for name in tensors if name.startswith("basis/"))]


def _change_basis(tensors, document):
    name = next(name for name in tensors if name.startswith("basis/"))
    tensors[name] = tensors[name] + 1


@pytest.mark.parametrize(
    ("kinds", "edit", "message"),
    [
        ("nola", _settings(seed=4), "other bases the coefficients are other weights"),
        ("nola", _settings(num_coefficients=4000), "its bases ask for"),
        ("nola", _settings(num_coefficients=10**9), "1 to 4096"),
        ("nola", _settings(generator="mine"), "generator"),
        ("nola", _settings(seed="3"), "seed"),
        ("lora-xs", _drop_basis, "one basis"),
        ("lora-xs", _change_basis, "other bases the coefficients are other weights"),
        ("nola lora-xs", _set(kind="mine"), "of kind 'mine'"),
        ("nola lora-xs", _set(digest="0" * 64), "digest"),
        ("nola lora-xs", lambda tensors, document: document["metadata"].pop("map"), "kind, settings and digest"),
    ],
)
def test_a_file_whose_bases_are_others_is_refused(run, tmp_path, kinds, edit, message):
    # Red for: a digest that is not compared; bases that are made before their size is known to be that of the file's coefficients.
    if run.swag.posterior.map.kind in kinds.split():
        with pytest.raises(PosteriorFormatError, match=message):
            load_posterior(edited(run.folder, tmp_path / "edited", edit))


def test_a_weight_that_has_coefficients_is_not_in_the_file_too(run):
    # Red for: draws in which one of the two wins, or an error of torch where their shapes differ.
    posterior = run.swag.posterior
    key = posterior.map.layout.keys[0]
    tensors, places = posterior.tensors(), {}
    for name, tensor in tensors.items():
        if name.endswith(f"/{key.removesuffix('weight')}coefficients"):
            places[name.replace(f"{key.removesuffix('weight')}coefficients", key)] = tensor
    assert places
    with pytest.raises(PosteriorFormatError, match="holds the weight .* itself"):
        CoefficientPosterior.from_tensors(
            tensors | places, posterior.record, posterior.adapter, posterior.metadata(), where="the file"
        )


def test_what_is_not_plain_lora_is_refused(base_folder):
    # Red for: coefficients in the place of matrices that compute something else, or of coefficients.
    with pytest.raises(SwagError, match="DoRA"):
        train_coefficients(lora_model(base_folder, use_dora=True), Nola())
    with pytest.raises(SwagError, match="plain LoRA, initialised"):
        train_coefficients(lora_model(base_folder, init_lora_weights="pissa"), Nola())
    with pytest.raises(SwagError, match="r=40 singular vectors"):
        train_coefficients(lora_model(base_folder, r=40), LoraXs())
    model = lora_model(base_folder)
    assert coefficient_map(model, "default") is None
    made = train_coefficients(model, Nola(2))
    assert coefficient_map(model, "default") is made
    with pytest.raises(SwagError, match="no coefficients yet"):
        train_coefficients(model, Nola(2))
    for wrong in ({"num_coefficients": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="Nola"):
            Nola(**wrong)


PREDICT = """
import json, sys
from transformers import pipeline
import swag_trainer
print(json.dumps(pipeline("swag-text-classification", model=sys.argv[1], top_k=None)(json.loads(sys.argv[2]))))
"""


@pytest.mark.slow
def test_a_new_process_predicts_the_same_bit_for_bit(run, texts, tokenizer, tmp_path):
    # Red for: bases that depend on the process, such as a hash with a salt.
    run.swag.posterior.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    here = pipeline("swag-text-classification", model=str(tmp_path), top_k=None)(texts[:5])
    command = [sys.executable, "-c", PREDICT, str(tmp_path), json.dumps(texts[:5])]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(there.splitlines()[-1]) == json.loads(json.dumps(here))
