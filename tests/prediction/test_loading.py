import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel, pipeline

import swag_trainer  # noqa: F401 - registers the task
from swag_trainer import AdapterMismatchError, SwagError, SwagPosterior
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification


@pytest.fixture
def folder(trained):
    trainer, _ = trained
    return Path(trainer.args.output_dir)


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder, **arguments):
    return AutoSwagModelForSequenceClassification.from_pretrained(str(folder), **arguments)


def test_base_adapter_and_posterior_come_together_in_evaluation_mode(folder, trained, tokenizer, texts):
    # Red for: a head that stays random, labels of the base's config (which knows 2), dropout left on.
    trainer, swag = trained
    model = load(folder)
    assert not model.training
    assert model.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert model.config.problem_type == "single_label_classification"
    assert model.swag_posterior.num_collected == swag.posterior.num_collected
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, trainer.model(**batch).logits)


def test_the_adapter_stays_in_float32_on_a_bfloat16_base(folder):
    # Red for: draws rounded to bfloat16, where a narrow posterior vanishes.
    model = load(folder, dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert dtypes["base_model.model.bert.embeddings.word_embeddings.weight"] == torch.bfloat16


def test_a_base_that_lost_its_pooler_is_refused_by_name(folder, base_folder, tmp_path):
    # Red for: an answer that differs at every load.
    bare = tmp_path / "bare-base"
    shutil.copytree(base_folder, bare)
    BertModel.from_pretrained(base_folder, add_pooling_layer=False).save_pretrained(bare)
    edit_config(folder, base_model_name_or_path=str(bare))
    with pytest.raises(SwagError, match=r"bert\.pooler\.dense\.bias.*random at every"):
        load(folder, ignore_mismatched_adapter=True)


def test_another_base_needs_to_be_accepted_also_through_the_pipeline(folder, base_folder, tmp_path):
    # Red for: a warning instead, or an argument that does not reach the loader.
    moved = tmp_path / "moved-base"
    shutil.copytree(base_folder, moved)
    edit_config(folder, base_model_name_or_path=str(moved))
    with pytest.raises(AdapterMismatchError, match="moved-base"):
        pipeline("swag-text-classification", model=str(folder))
    accepted = pipeline(
        "swag-text-classification", model=str(folder), model_kwargs={"ignore_mismatched_adapter": True}, device="cpu"
    )
    assert accepted("good film")[0]["label"] in {"negative", "neutral", "positive"}


def test_an_adapter_whose_file_lacks_a_weight_is_refused(folder):
    # Red for: peft's own warning about missing keys, after which a matrix is random. The weight is not one of the posterior's.
    posterior = SwagPosterior.from_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.bert.pooler.lora_A.weight": torch.zeros(4, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterMismatchError, match="digest"):
        load(folder)
    with pytest.raises(AdapterMismatchError, match=r"do not have the same weights.*pooler"):
        load(folder, ignore_mismatched_adapter=True)
    assert posterior.rank > 0


@pytest.mark.parametrize("changes", [{"layer_replication": [[0, 2], [0, 2]]}, {"megatron_config": {"x": 1}}])
def test_settings_that_do_more_than_an_adapter_should_are_refused(folder, changes):
    # Red for: a repository that multiplies the model's layers, or imports a module of its own.
    edit_config(folder, **changes)
    with pytest.raises(SwagError, match=next(iter(changes))):
        load(folder)


def test_an_adapter_cannot_choose_whose_code_runs(folder):
    # Red for: trust_remote_code handed on to the base that the adapter names.
    with pytest.raises(SwagError, match="trust_remote_code"):
        load(folder, trust_remote_code=True)


def test_an_adapter_without_a_base_says_what_to_do(folder):
    # Red for: an error of transformers about None.
    posterior = SwagPosterior.from_pretrained(folder)
    edit_config(folder, base_model_name_or_path=None)
    with pytest.raises(SwagError, match="names no base model"):
        load(folder, ignore_mismatched_adapter=True)
    assert posterior.adapter.base_model


def test_a_config_beside_the_adapter_is_not_read(folder, tmp_path, monkeypatch):
    # Red for: a config.json that names code of its own, which transformers reads, and runs after a "y" on the terminal.
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}, "custom_pipelines": {"x": {}}})
    )
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    classify = pipeline("swag-text-classification", model=str(folder), device="cpu")
    assert classify("good film")[0]["label"] in {"negative", "neutral", "positive"}
    with pytest.raises(SwagError, match="trust_remote_code"):
        pipeline("swag-text-classification", model=str(folder), trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_other_tasks_read_their_configs_as_before(base_folder):
    # Red for: an empty configuration for every pipeline of the process.
    assert pipeline("text-classification", model=str(base_folder), device="cpu").model.config.hidden_size == 32


def test_a_base_that_is_not_there_is_named_with_what_to_do(folder, tmp_path):
    # Red for: an error of transformers about the Hub, from the loader or from the pipeline.
    edit_config(folder, base_model_name_or_path=str(tmp_path / "gone"))
    for name in ("loader", "pipeline"):
        with pytest.raises(SwagError, match=r"gone' cannot be loaded.*base_model="):
            if name == "loader":
                load(folder, ignore_mismatched_adapter=True)
            else:
                more = {"ignore_mismatched_adapter": True}
                pipeline("swag-text-classification", model=str(folder), model_kwargs=more, device="cpu")
