"""Train, save, load in a new process: the same answers, or an error with the reason."""

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from changed_bases import (
    INPUT_IDS,
    OTHERS,
    adapter_on,
    answers,
    lively_base,
    load_base,
    trained_with_swag,
)
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BertTokenizerFast, pipeline

from swag_trainer import AdapterMismatchError, MonteCarloPredictor, SwagPosterior, to_plain_lora
from swag_trainer.prediction import loading
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification

PATTERNS = {
    "use_rslora": True,
    "rank_pattern": {"layer.0.attention.self.query": 2},
    "alpha_pattern": {"layer.1.attention.self.value": 3},
}
# Name of the run -> (initialisation, further settings, is it saved as plain LoRA).
RUNS = {
    "olora": ("olora", {}, False),
    "pissa": ("pissa", {}, False),
    **{name: (name, {}, True) for name in OTHERS},
    "olora, exported": ("olora", {"modules_to_save": ["classifier", "pooler"]}, True),
    "pissa with patterns, exported": ("pissa", PATTERNS, True),
    "olora with DoRA, exported": ("olora", {"use_dora": True}, True),
}
QUICK = ["olora", "lora_ga"]
NEW_PROCESS = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
from swag_trainer import MonteCarloPredictor
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification

torch.manual_seed(12345)
input_ids, answers = torch.tensor(json.loads(sys.argv[1])), {}
batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
for name, folder in json.loads(sys.argv[2]).items():
    model = AutoSwagModelForSequenceClassification.from_pretrained(folder)
    ours = MonteCarloPredictor(model, model.swag_posterior, scale=0).logits(batch)[0]
    base = json.load(open(folder + "/adapter_config.json"))["base_model_name_or_path"]
    base = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    with torch.no_grad():
        pefts = PeftModel.from_pretrained(base, folder).eval()(**batch).logits
    answers[name] = [ours.tolist(), pefts.tolist()]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def base(base_folder, tmp_path_factory):
    return lively_base(base_folder, tmp_path_factory.mktemp("lively-bert"))


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """A function that trains and saves the run of a name, once: (folder, model in memory, posterior, A0 and B0)."""
    tokenizer = BertTokenizerFast.from_pretrained(base)
    rows = [{"input_ids": ids, "attention_mask": [1] * 9, "labels": index % 3} for index, ids in enumerate(INPUT_IDS.tolist())]

    @functools.cache
    def run(name):
        initialisation, config, exported = RUNS[name]
        folder = tmp_path_factory.mktemp(initialisation)
        model = adapter_on(load_base(base), initialisation, **config)
        model.save_pretrained(folder / "first")  # what PEFT's own conversion asks for
        _, posterior, initial = trained_with_swag(model, rows, tokenizer, folder / "run")
        (to_plain_lora(posterior) if exported else posterior).save_pretrained(folder / "saved")
        return folder / "saved", model, posterior, initial

    return run


@pytest.fixture
def saved(runs, tmp_path):
    """A copy of a run's saved folder that a test may spoil."""

    def copy(name):
        return Path(shutil.copytree(runs(name)[0], tmp_path / "copy"))

    return copy


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("names", [QUICK, [name for name in RUNS if name not in QUICK]])
def test_a_new_process_answers_as_the_one_that_trained(runs, names):
    # Red for: a base that is not changed again, or not in the same way, or changed again under plain LoRA; a lost head; a
    # scaling that is not that of the doubled rank.
    folders = {name: str(runs(name)[0]) for name in names}
    command = [sys.executable, "-c", NEW_PROCESS, json.dumps(INPUT_IDS.tolist()), json.dumps(folders)]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    for name in names:
        here = answers(runs(name)[1])
        assert here.std() > 0.1, name  # answers that depend on nothing prove nothing
        for logits in found[name]:
            assert (torch.tensor(logits) - here).abs().max() < 1e-5, name


@pytest.mark.parametrize(
    "name", ["lora_ga", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pissa_niter_4", "corda"))]
)
def test_the_adapter_as_it_was_trained_would_answer_otherwise(runs, base, name, tmp_path):
    # Red for: a test above that any adapter passes. This is what PEFT's own file gives (CorDA's does not load at all).
    _, model, posterior, _ = runs(name)
    posterior.adapter.write(tmp_path)
    if name == "corda":
        with pytest.raises(ValueError, match="preprocess_corda"):
            PeftModel.from_pretrained(load_base(base), tmp_path)
    else:
        assert (answers(PeftModel.from_pretrained(load_base(base), tmp_path)) - answers(model)).abs().max() > 0.1


def test_the_export_has_the_matrices_of_pefts_own_conversion_and_keeps_the_head(runs, tmp_path):
    # Red for: another order of the halves than PEFT's, or PEFT's fault: its file has lora_A and lora_B only (0.21.2).
    folder, model, posterior, initial = runs("olora, exported")
    first = folder.parent / "first"
    edit_config(first, init_lora_weights=True)
    model.save_pretrained(tmp_path, path_initial_model_for_weight_conversion=str(first))
    pefts, ours = load_file(tmp_path / "adapter_model.safetensors"), load_file(folder / "adapter_model.safetensors")
    assert pefts.keys() == {key for key in ours if "lora_" in key}
    assert all(torch.equal(ours[key], tensor) for key, tensor in pefts.items())
    assert {key for key in ours if "classifier" in key or "pooler" in key} == {
        f"base_model.model.{module}.{part}" for module in ("classifier", "bert.pooler.dense") for part in ("weight", "bias")
    }
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    for setting in ("r", "lora_alpha", "init_lora_weights"):
        assert to_plain_lora(posterior).adapter.config[setting] == written[setting]


def test_an_exported_posterior_says_what_it_was(runs):
    # Red for: a posterior that claims to be of an adapter which nobody trained.
    exported = SwagPosterior.from_pretrained(runs("lora_ga")[0])
    assert exported.record.initialisation == "lora_ga, exported as plain LoRA"
    assert exported.num_collected == runs("lora_ga")[2].num_collected


@pytest.mark.parametrize(
    "name", ["lora_ga", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name.endswith("exported"))]
)
def test_every_draw_gives_its_own_answers_after_the_export(runs, name):
    # Red for: a lift that is right at the mean only.
    folder, model, posterior, initial = runs(name)
    loaded = AutoSwagModelForSequenceClassification.from_pretrained(str(folder))
    batch = {"input_ids": INPUT_IDS, "attention_mask": torch.ones_like(INPUT_IDS)}
    expected = MonteCarloPredictor(model, posterior, num_samples=3).logits(batch)
    assert expected.std(dim=0).max() > 0.02
    for draw, logits in zip(posterior.draw(3, seed=0).vectors, expected, strict=True):
        at_the_draw = replace(posterior, gaussian=replace(posterior.gaussian, mean=draw))
        found = MonteCarloPredictor(loaded, to_plain_lora(at_the_draw), scale=0).logits(batch)[0]
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["olora", "lora_ga"])
def test_a_base_in_bfloat16_is_accepted(runs, name):
    # Red for: a tolerance that takes the rounding of a half-precision base for another base.
    model = AutoSwagModelForSequenceClassification.from_pretrained(str(runs(name)[0]), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.swag_posterior.num_collected >= 2


@pytest.mark.parametrize("name", ["olora", "lora_ga"])
def test_another_base_is_refused_even_where_another_adapter_is_accepted(saved, base, tmp_path, name):
    # Red for: ignore_mismatched_adapter switching this off, or the check left out under plain LoRA.
    other = shutil.copytree(base, tmp_path / "other")
    model = load_base(base)
    model.bert.encoder.layer[0].attention.self.query.weight.data *= 1.05
    model.save_pretrained(other)
    folder = edit_config(saved(name), base_model_name_or_path=str(other))
    with pytest.raises(AdapterMismatchError, match=r"copy.*another base.*layer\.0\.attention\.self\.query"):
        AutoSwagModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_adapter=True)


@pytest.mark.parametrize("initialisation", [*OTHERS, "loftq"])
def test_an_adapter_that_no_process_can_load_is_refused_before_the_base_is_loaded(saved, initialisation, monkeypatch):
    # Red for: PEFT's ValueError about CorDA, which the pipeline swallows, and its silence about LoRA-GA.
    monkeypatch.setattr(loading, "_load_base", lambda *_, **__: pytest.fail("the base was loaded"))
    folder = edit_config(saved("olora"), init_lora_weights=initialisation)
    with pytest.raises(AdapterMismatchError, match=rf"init_lora_weights=.*{initialisation}"):  # a setting changed after saving
        AutoSwagModelForSequenceClassification.from_pretrained(folder)
    accepted = {"ignore_mismatched_adapter": True}
    with pytest.raises(AdapterMismatchError, match=rf"'{initialisation}'.*to_plain_lora"):
        AutoSwagModelForSequenceClassification.from_pretrained(folder, **accepted)
    with pytest.raises(AdapterMismatchError, match=rf"'{initialisation}'.*to_plain_lora"):
        pipeline("swag-text-classification", model=folder, model_kwargs=accepted)


def test_low_cpu_mem_usage_is_refused_before_the_base_is_loaded(runs, monkeypatch):
    # Red for: PEFT's "incompatible tensor type" after the slow part, or an argument that does nothing.
    folder = str(runs("olora")[0])
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_load_base", lambda *_, **__: pytest.fail("the base was loaded"))
        with pytest.raises(AdapterMismatchError, match="low_cpu_mem_usage=True leaves the base.*'olora' changes it"):
            pipeline("swag-text-classification", model=folder, model_kwargs={"low_cpu_mem_usage": True})
    assert AutoSwagModelForSequenceClassification.from_pretrained(folder, low_cpu_mem_usage=False)
    exported = str(runs("lora_ga")[0])
    assert AutoSwagModelForSequenceClassification.from_pretrained(exported, low_cpu_mem_usage=True)


def test_a_file_of_an_earlier_version_is_read_without_a_fingerprint(runs, tmp_path):
    # Red for: every OLoRA posterior that exists being refused.
    _, model, posterior, _ = runs("olora")
    replace(posterior, record=replace(posterior.record, base_fingerprint={})).save_pretrained(tmp_path)
    loaded = AutoSwagModelForSequenceClassification.from_pretrained(str(tmp_path))
    assert (answers(loaded) - answers(model)).abs().max() < 1e-5
