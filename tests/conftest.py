"""What every test may use: a Hub on the loopback interface, a tiny base model on disk, and texts for it.

The Hugging Face libraries read HF_ENDPOINT once, at import: the loopback Hub must run before the first of them is imported.
"""

from __future__ import annotations

import copy
import gc
import logging
import os
import shutil
import tempfile
from pathlib import Path

from minihub import MiniHub

_HUB = MiniHub().__enter__()
os.environ |= {
    "HF_ENDPOINT": _HUB.endpoint,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HOME": tempfile.mkdtemp(prefix="swag-tests-hf-"),
    "HF_TOKEN": "hf_test",
    "TOKENIZERS_PARALLELISM": "false",
}
# torchao warns about each of its kernels for GPUs when it is imported, and torch about torchao.
logging.getLogger("torchao").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


import pytest  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

WORDS = (
    "a the film was good bad slow bright dull funny sad long short great poor plot cast end and but very not so quite".split()
)
LABELS = ["negative", "neutral", "positive"]


def pytest_collection_finish() -> None:
    """Leave all that was imported out of garbage collections: every Trainer begins with one, which took 0.4 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def hub() -> MiniHub:
    """The loopback Hub that every client in this process and its children talks to."""
    return _HUB


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT classifier with its tokenizer, whose config knows 2 labels."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(base_folder: Path) -> BertTokenizerFast:
    return BertTokenizerFast.from_pretrained(base_folder)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Twenty-four texts of 2 to 12 words."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 13, (24,), generator=generator).tolist()
    return [" ".join(WORDS[index] for index in torch.randint(len(WORDS), (length,), generator=generator)) for length in lengths]


@pytest.fixture
def rows(texts: list[str], tokenizer: BertTokenizerFast) -> list[dict]:
    """The texts as the Trainer takes them, with three classes."""
    return labelled(texts, tokenizer)


def labelled(texts: list[str], tokenizer: BertTokenizerFast) -> list[dict]:
    """Texts as the Trainer takes them, with the labels 0, 1 and 2 by turns."""
    return [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]


def lora_model(base: str | Path, *, num_labels: int = 3, seed: int = 0, **config) -> PeftModel:
    """A PEFT classifier on a base; the same seed gives the same weights."""
    set_seed(seed)
    names = LABELS if num_labels == 3 else [f"class {index}" for index in range(num_labels)]
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=num_labels,
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    settings = {
        "task_type": "SEQ_CLS",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "target_modules": ["query", "value"],
    } | config
    return get_peft_model(model, LoraConfig(**settings))


def trainer_for(model: PeftModel, rows: list, tokenizer, folder: Path, *, callbacks=(), eval_rows=None, **arguments) -> Trainer:
    """A Trainer that takes 24 steps of 4 rows, saves nothing by itself and logs little."""
    settings = {
        "output_dir": str(folder),
        "max_steps": 24,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_steps": 6,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    } | arguments
    return Trainer(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


@pytest.fixture(scope="session")
def finished_run(base_folder: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A finished run, trained once for all tests of the process: (trainer, callback). Tests take `trained`."""
    from swag_trainer import SwagCallback

    swag, tokenizer = SwagCallback(rank=5), BertTokenizerFast.from_pretrained(base_folder)
    trainer = trainer_for(
        lora_model(base_folder), labelled(texts, tokenizer), tokenizer, tmp_path_factory.mktemp("run"), callbacks=[swag]
    )
    trainer.train()
    trainer.model.eval()
    return trainer, swag


@pytest.fixture
def trained(finished_run, tokenizer, tmp_path: Path):
    """A finished run: (trainer, callback). Model, tokenizer and output folder are the test's own, to change as it likes."""
    trainer, swag = map(copy.copy, finished_run)
    trainer.model = trainer.model_wrapped = copy.deepcopy(trainer.model)
    trainer.processing_class = tokenizer
    trainer.args = copy.copy(trainer.args)
    trainer.args.output_dir = shutil.copytree(trainer.args.output_dir, str(tmp_path / "run"))
    return trainer, swag
