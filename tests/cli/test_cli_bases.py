"""Base models of other architectures, and base models that lie elsewhere, from the command line and from Python."""

import json
import re
import shutil

import pytest
from command_line import DEMO, demo_rows
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    pipeline,
    set_seed,
)

from swag_trainer import MonteCarloPredictor, SwagPosterior
from swag_trainer.cli.main import main
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification

WORDS = sorted({word for row in demo_rows() for word in re.findall(r"[a-z]+", row["text"].lower())})
SIZES = {"vocab_size": len(WORDS) + 5, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 64}
DISTILBERT = {"vocab_size": len(WORDS) + 5, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 3, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3}
BASES = {
    "bert": lambda: BertModel(BertConfig(**SIZES), add_pooling_layer=False),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(**DISTILBERT)),
    "deberta": lambda: DebertaV2Model(DebertaV2Config(**SIZES)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SIZES | SPECIAL)),
}


def save_base(name, folder):
    """A base model as it lies on the Hub: without pooler, pre-classifier and head."""
    set_seed(0)
    BASES[name]().save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    names = ["input_ids", "attention_mask"]
    BertTokenizerFast(vocab=vocabulary, model_max_length=64, model_input_names=names).save_pretrained(folder)
    return str(folder)


def train(base, output, *options):
    recipe = ["--steps", "6", "--learning-rate", "2e-2", "--train-rows", "60", "--snapshots", "3", "--dataset", str(DEMO)]
    return main(["train", base, "--output", str(output), *recipe, *options])


def predicted(capsys, *command):
    capsys.readouterr()
    assert main(["predict", *command, "where is my parcel", "money back"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("name", "targets", "saved"),
    [
        ("bert", {"query", "value"}, {"bert.pooler"}),
        ("distilbert", {"q_lin", "v_lin"}, {"pre_classifier"}),
        ("deberta", {"query_proj", "value_proj"}, {"pooler"}),
        ("modernbert", {"Wqkv"}, {"head"}),
    ],
)
def test_an_architecture_trains_and_predicts_without_options(name, targets, saved, tmp_path, capsys):
    # Red for: an architecture for which PEFT names no layers; a pooler or pre-classifier that is random at every load.
    base = save_base(name, tmp_path / "base")
    assert train(base, tmp_path / "run") == 0
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == targets
    assert set(config["modules_to_save"]) == {*saved, "classifier", "score"}
    one, two = (predicted(capsys, str(tmp_path / "run")) for _ in range(2))
    assert one == two


def test_all_linear_layers_and_named_modules(tmp_path, capsys):
    # Red for: 'all-linear' taken for the name of a layer; LoRA inside of what is saved as a whole; an option that is dropped.
    base = save_base("distilbert", tmp_path / "base")
    assert train(base, tmp_path / "run", "--target-modules", "all-linear") == 0
    modules = {key.rpartition(".lora_A")[0].rpartition(".")[2] for key in SwagPosterior.from_pretrained(tmp_path / "run").mean}
    assert modules == {"", "q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"}
    assert len(predicted(capsys, str(tmp_path / "run"))) == 2
    deberta = save_base("deberta", tmp_path / "deberta")
    assert train(deberta, tmp_path / "named", "--modules-to-save", "pooler", "LayerNorm") == 0
    keys = set(SwagPosterior.from_pretrained(tmp_path / "named").layout.keys)
    assert any("pooler.dense" in key for key in keys) and any("LayerNorm" in key for key in keys)
    assert train(deberta, tmp_path / "less", "--modules-to-save", "LayerNorm") == 1
    assert "'pooler' is in neither the base model's checkpoint nor the adapter's file" in capsys.readouterr().err


def test_a_base_model_that_moved_is_named_with_an_option(tmp_path, capsys):
    # Red for: a base model that transformers or the loader takes from adapter_config.json all the same, in one command or in Python.
    base, run = save_base("bert", tmp_path / "base"), str(tmp_path / "run")
    assert train(base, run) == 0
    expected = predicted(capsys, run)
    moved = str(shutil.move(base, tmp_path / "moved"))
    assert main(["predict", run, "text"]) == 1
    shown = capsys.readouterr().err
    assert f"The base model {base!r} cannot be loaded" in shown and "--base-model" in shown
    assert predicted(capsys, run, "--base-model", moved) == expected
    quick = ["--base-model", moved, "--dataset", str(DEMO)]
    before = (tmp_path / "run" / "adapter_config.json").read_bytes()
    assert main(["tune", run, *quick, "--num-samples", "2"]) == 0
    assert (tmp_path / "run" / "adapter_config.json").read_bytes() == before
    assert main(["evaluate", run, *quick, "--methods", "SWA", "--num-resamples", "2"]) == 0

    texts = ["where is my parcel", "money back"]
    with_name = pipeline("swag-text-classification", model=run, model_kwargs={"base_model": moved}, device="cpu")
    model = AutoSwagModelForSequenceClassification.from_pretrained(run, base_model=moved)
    with_model = pipeline("swag-text-classification", model=model, device="cpu")
    assert with_name(texts) == with_model(texts)
    predictor = MonteCarloPredictor(model, model.swag_posterior, num_samples=2)
    probabilities = predictor.predict([dict(with_model.tokenizer(texts[0]))]).probabilities
    assert float(probabilities.max()) == pytest.approx(with_model(texts)[0]["score"])


def test_a_mismatched_adapter_is_accepted_with_an_option(tmp_path, capsys):
    # Red for: a message that advises what the command line cannot do.
    base, run = save_base("bert", tmp_path / "base"), tmp_path / "run"
    assert train(base, run) == 0
    moved = str(shutil.move(base, tmp_path / "moved"))
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": moved}))
    for command in (["inspect"], ["predict"], ["card", "--output", str(tmp_path / "README.md")]):
        command = [command[0], str(run), *command[1:], *(["text"] if command[0] == "predict" else [])]
        assert main(command) == 1
        assert "--ignore-mismatched-adapter" in capsys.readouterr().err
        assert main([*command, "--ignore-mismatched-adapter"]) == 0
