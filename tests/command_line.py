"""The command line on the demo's text with a model small enough for tests."""

import functools
import json
import re
import shutil
import tempfile
from pathlib import Path

from decoders import save_decoder
from huggingface_hub import HfApi
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, set_seed

from swag_trainer.cli.main import main

DEMO = Path(__file__).parents[1] / "examples" / "data" / "support.jsonl"
BASE = "user/demo-tiny-bert"


def demo_rows() -> list[dict]:
    return [json.loads(line) for line in DEMO.read_text(encoding="utf-8").splitlines()]


@functools.cache
def demo_base() -> str:
    """A tiny random BERT that knows the words of the demo's training rows, on the loopback Hub."""
    words = sorted(
        {word for row in demo_rows() for word in re.findall(r"[a-z]+", row["text"].lower()) if row["split"] == "train"}
    )
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    HfApi().create_repo(BASE, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
        BertForSequenceClassification(config).save_pretrained(folder)
        HfApi().upload_folder(repo_id=BASE, folder_path=folder)
    return BASE


@functools.cache
def demo_decoder() -> str:
    """A tiny random Llama, on the loopback Hub, with the demo's words and no padding token, like most decoders."""
    repo = "user/demo-tiny-llama"
    words = sorted({word for row in demo_rows() for word in re.findall(r"[a-z]+", row["text"].lower())})
    HfApi().create_repo(repo, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        HfApi().upload_folder(repo_id=repo, folder_path=save_decoder(Path(folder), words))
    return repo


def train(output: str | Path, *options: str) -> None:
    """Train on the demo's text for a moment."""
    recipe = ["--steps", "40", "--learning-rate", "2e-2", "--max-length", "24", "--train-rows", "120", "--snapshots", "6"]
    assert main(["train", demo_base(), "--dataset", str(DEMO), "--output", str(output), *recipe, *options]) == 0


@functools.cache
def trained_folder() -> Path:
    """Adapter, posterior and tokenizer, trained once for all tests, which must not write there."""
    folder = Path(tempfile.mkdtemp(prefix="swag-cli-")) / "run"
    train(folder)
    return folder


def plain_adapter(folder: Path) -> Path:
    """The trained adapter without its posterior, as plain PEFT saves it."""
    shutil.copytree(trained_folder(), folder)
    (folder / "swag_posterior.safetensors").unlink()
    return folder
