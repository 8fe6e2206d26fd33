"""Memory of predictions by calculation, against the sizes of the real tensors and against what torch's allocator saw."""

import json
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from choices import choice_tokenizer, language_model, questions, save_base
from conftest import lora_model
from huggingface_hub import HfApi
from torch.profiler import ProfilerActivity, profile

from swag_trainer import ChoiceCollator, ChoiceSettings, MonteCarloPredictor, SwagError
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.cli.main import main
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.mean_field import MeanFieldPosterior
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.prediction.memory import estimate_memory
from swag_trainer.tasks.multiple_choice import MultipleChoice


def posterior_of(model, **record):
    saved = AdapterWeights(model).saved()
    layout = WeightLayout.of(saved.tensors)
    fitted = FitRecord("tfb", "me/texts", "train", None, 40, {"epsilon": 0.01})
    record = PosteriorRecord(base_model=saved.base_model, versions={"torch": "2"}, **record)
    return MeanFieldPosterior(layout, layout.flatten(saved.tensors), torch.full((layout.size,), 1e-4), record, fitted, saved)


def allocated_at_most(run):
    """The most bytes of new tensors at once, as torch's allocator counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    events = (event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]")
    return max(accumulate(size for _, size in sorted((event.start_ns(), event.nbytes()) for event in events)))


def test_a_classifier_takes_what_was_calculated(base_folder, tokenizer):
    # Red for: weights counted twice or in another precision, a forward of one draw in the place of those that are packed, tensors that are
    # counted after they are gone.
    model = lora_model(base_folder)
    posterior = posterior_of(model, labels=["a", "b", "c"], problem_type="single_label_classification")
    found = estimate_memory(posterior, num_samples=8, batch_size=4, length=64)
    base = model.get_base_model()
    own = [tensor for name, tensor in [*base.named_parameters(), *base.named_buffers()] if "lora_" not in name]
    own = [tensor for tensor in own if tensor is not base.classifier.modules_to_save.default.weight]
    own = [tensor for tensor in own if tensor is not base.classifier.modules_to_save.default.bias]
    assert found.base == sum(tensor.nbytes for tensor in own)
    assert found.draws == 8 * 4 * posterior.layout.size and found.adapter == 2 * 4 * posterior.layout.size
    assert found.draws_per_forward == 4

    predictor = MonteCarloPredictor(model, posterior, num_samples=8, batch_size=4)
    rows = [{"input_ids": [2, *[number] * 62, 3], "attention_mask": [1] * 64} for number in (5, 6, 7, 8)]
    predictor.predict(rows)
    measured = allocated_at_most(lambda: predictor.predict(rows))
    assert measured == pytest.approx(found.activations + found.caches, rel=0.1), (measured, found)


def test_a_language_model_takes_what_was_calculated(tmp_path):
    # Red for: logits of every position, a head that is counted beside the embeddings it is tied to.
    base, settings = save_base("llama", tmp_path / "base"), ChoiceSettings(scoring="letters")
    model, tokenizer = language_model("llama", base), choice_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    posterior = posterior_of(model, task="swag-multiple-choice", task_settings=settings.as_record())
    collator = ChoiceCollator(tokenizer, settings)
    encoded = [collator.encoder(row) for row in questions()]
    longest = max(len(row["input_ids"]) for row in encoded)
    row = next(row for row in encoded if len(row["input_ids"]) == longest)
    row = {name: value for name, value in row.items() if name != "labels"}
    predictor = MonteCarloPredictor(model, posterior, num_samples=6, task=MultipleChoice(settings), batch_size=4)
    predictor.predict([row] * 4)
    measured = allocated_at_most(lambda: predictor.predict([row] * 4))
    found = estimate_memory(posterior, num_samples=6, batch_size=4, length=longest)
    assert measured == pytest.approx(found.activations + found.caches, rel=0.2), (measured, found, longest)


def test_precision_quantisation_and_generation_are_calculated(tmp_path):
    # Red for: bytes of float32 for bfloat16, a 4-bit base as large as the whole one, generation without its keys and values, the logits of
    # every position of a prompt.
    base = save_base("llama", tmp_path / "base")
    model = language_model("llama", base)
    posterior = posterior_of(model)
    options = {"num_samples": 2, "batch_size": 3, "length": 20}
    choices = posterior_of(model, task="swag-multiple-choice")
    whole = estimate_memory(choices, **options)
    half = estimate_memory(choices, **options, dtype=torch.bfloat16)
    assert half.base == pytest.approx(whole.base / 2, rel=0.01) and half.activations < whole.activations
    linear = sum(parameter.numel() for name, parameter in model.named_parameters() if ".base_layer." in name or "mlp" in name)
    linear += sum(
        p.numel()
        for name, p in model.named_parameters()
        if "self_attn" in name and name.endswith(("k_proj.weight", "o_proj.weight"))
    )
    small = estimate_memory(choices, **options, dtype=torch.bfloat16, bits=4)
    assert half.base - small.base == linear * 2 - linear // 2 - linear // 64 * 4
    text = estimate_memory(posterior_of(model, task="swag-text-generation"), **options)
    # 2 layers, 2 heads of keys and values of 8 dimensions, float32, for each of 2 draws of 3 rows.
    assert text.caches - whole.caches == 2 * 2 * 2 * 8 * 4 * 20 * 2 * 3
    (tmp_path / "wide").mkdir()
    wide = json.loads((base / "config.json").read_text()) | {"vocab_size": 50_000}
    (tmp_path / "wide" / "config.json").write_text(json.dumps(wide))
    assert estimate_memory(choices, **options, base_model=tmp_path / "wide").activations < 50_000 * 4 * 3 * 20
    with pytest.raises(SwagError, match="bits=3"):
        estimate_memory(posterior, bits=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; more than 2,000"),
        ({"num_labels": 10**12}, "num_labels=1000000000000; more than 1,000,000"),
        ({"nested": {"depths": [2, 10**9]}}, "depths=1000000000"),
        ({"max_position_embeddings": "x"}, "StrictDataclassFieldValidationError"),
        ({"architectures": [5], "task_type": None}, "What is the posterior .* to be used for"),
        ({"dtype": "os"}, "failed|cannot be asked"),
    ],
)
def test_absurd_sizes_in_the_config_of_the_base_are_refused_before_they_cost_time(changes, words, base_folder, tmp_path):
    # Red for: a Python object for each of 10^9 layers or labels; errors of huggingface_hub and of attributes that are not there.
    posterior = posterior_of(lora_model(base_folder), labels=["a", "b", "c"])
    if "task_type" in changes:
        config = {**posterior.adapter.config, "task_type": None}
        posterior = replace(posterior, adapter=replace(posterior.adapter, config=config))
    config = json.loads((base_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SwagError, match=words):
        estimate_memory(posterior, base_model=tmp_path, name="x")


def test_the_command_reads_nothing_of_the_base_but_its_config(base_folder, tmp_path, capsys):
    # Red for: a base of gigabytes that is downloaded to say how large it is; a table whose sum is another; a mean-field posterior, whose
    # variance is one vector, that cannot be inspected.
    posterior = posterior_of(lora_model(base_folder), labels=["a", "b", "c"])
    HfApi().create_repo("user/config-only", exist_ok=True)
    HfApi().upload_file(path_or_fileobj=base_folder / "config.json", path_in_repo="config.json", repo_id="user/config-only")
    posterior.with_base_model("user/config-only").save_pretrained(tmp_path)
    command = ["inspect", str(tmp_path), "--memory", "--batch-size", "4", "--length", "64"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["memory"]
    assert found["total"] == sum(found[name] for name in ("base", "adapter", "posterior", "draws", "activations", "caches"))
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "10 draws of 4 texts with 64 tokens" in shown and f"{found['total'] / 2**20:.1f} MiB" in shown
    assert main([*command, "--base-model", "user/gone"]) == 1
    assert "user/gone" in capsys.readouterr().err
