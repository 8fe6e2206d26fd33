"""Run the Python blocks of documents, against a Hub on the loopback interface with tiny models under the names of real ones.

    python tests/run_documents.py README.md
    python tests/run_documents.py docs/tutorial.md docs/guides/abstain.md docs/guides/ood.md
    python tests/run_documents.py examples/notebooks/language_model.ipynb

All blocks of a document run in order, as they stand: only numbers of steps are made smaller. Each document after the first continues it, with
its variables and in its folder; a notebook begins anew. Nothing but an installed package is needed: `make release` runs it in an environment without pytest.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from minihub import MiniHub

ROOT = Path(__file__).parents[1]
# Numbers in the documents that take minutes: what they are replaced with.
SHORTER = {"num_train_epochs=20": "max_steps=60"}
# Documents that need a library which is in no environment of the tests.
NEEDS = {"docs/guides/quantised.md": "bitsandbytes", "docs/guides/rewards.md": "sentence_transformers"}
CLASSIFIER, LANGUAGE_MODEL = "sentence-transformers/all-MiniLM-L6-v2", "HuggingFaceTB/SmolLM2-135M-Instruct"
VISION = "google/vit-base-patch16-224-in21k"
SENTIMENT, SENTENCES = "distilbert/distilbert-base-uncased-finetuned-sst-2-english", "stanfordnlp/sst2"


def words() -> list[str]:
    """Return the words of the demo's messages, so that the tiny models can tell these apart."""
    return sorted(set(re.findall(r"[a-z]+", (ROOT / "examples/data/support.jsonl").read_text(encoding="utf-8").lower())))


def blocks(document: Path) -> str:
    """Return the Python blocks of a Markdown file as one program, each line at its own number; of a notebook, its cells of code."""
    if document.suffix == ".ipynb":
        cells = json.loads(document.read_text(encoding="utf-8"))["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    lines, program, is_python = document.read_text(encoding="utf-8").splitlines(), [], False
    for line in lines:
        if line.startswith("```"):
            is_python = line == "```python"
            program.append("")
        else:
            program.append(line if is_python else "")
    return "\n".join(program) + "\n"


def run(documents: list[str], folder: Path) -> list[str]:
    """Run documents in a folder, and return the names of those that failed; their tracebacks are printed."""
    from transformers import set_seed

    (folder / "examples").symlink_to(ROOT / "examples")
    os.chdir(folder)
    failed: list[str] = []
    first: dict[str, Any] = {"__name__": "__main__"}
    for number, name in enumerate(documents):
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            print(f"{name}: left out, {NEEDS[name]} is not installed")
            continue
        program = blocks(ROOT / name)
        for long, short in SHORTER.items():
            program = program.replace(long, short)
        variables = first if number == 0 else {"__name__": "__main__"} if name.endswith(".ipynb") else dict(first)
        set_seed(0)
        try:
            exec(compile(program, name, "exec", dont_inherit=True), variables)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {'failed' if name in failed else 'ran'}", flush=True)
    return failed


def save_classifier(folder: Path, kind: str = "BertModel") -> None:
    """A tiny BERT, and its tokenizer; without a head, as all-MiniLM-L6-v2 is one, unless another class is named."""
    import transformers

    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words()])}
    transformers.BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    # As wide as a block of 4-bit weights: bitsandbytes cannot repack narrower ones.
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.1, **sizes)
    getattr(transformers, kind)(config).save_pretrained(folder)


def save_language_model(folder: Path) -> None:
    """A tiny Llama, and a tokenizer with a token for each letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {
        word: index for index, word in enumerate(["<end>", "<unk>", *"ABCDE", ":", ".", "Question", "Answer", *words()])
    }
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>", unk_token="<unk>").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), eos_token_id=0, bos_token_id=0, **sizes)).save_pretrained(folder)


def save_image_model(folder: Path) -> None:
    """A tiny ViT without a head, and its image processor."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def play_sentences() -> None:
    """Let `datasets.load_dataset` return the demo's messages for the name of a data set on the Hub, with two classes."""
    import datasets

    load_dataset = datasets.load_dataset
    rows = [json.loads(line) for line in (ROOT / "examples/data/support.jsonl").read_text(encoding="utf-8").splitlines()[:200]]
    played = {"sentence": [row["text"] for row in rows], "label": [int("order" in row["intent"]) for row in rows]}

    def load(name: str, *names: Any, **options: Any) -> Any:
        return datasets.Dataset.from_dict(played) if name == SENTENCES else load_dataset(name, *names, **options)

    datasets.load_dataset = load


def main(documents: list[str]) -> int:
    """Run documents, and return how many failed."""
    with MiniHub() as server, tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": home,
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        logging.getLogger("torchao").setLevel(logging.ERROR)
        from huggingface_hub import HfApi

        played = {
            CLASSIFIER: save_classifier,
            LANGUAGE_MODEL: save_language_model,
            VISION: save_image_model,
            SENTIMENT: partial(save_classifier, kind="BertForSequenceClassification"),
        }
        play_sentences()
        for number, (name, save) in enumerate(played.items()):
            save(Path(home, f"base{number}"))
            HfApi().create_repo(f"user/base{number}")
            HfApi().upload_folder(repo_id=f"user/base{number}", folder_path=Path(home, f"base{number}"))
            server.hub.repos[name] = server.hub.repos[f"user/base{number}"]
        failed = run(documents, Path(folder))
        published = HfApi().list_repo_files("user/support-swag") if "user/support-swag" in server.hub.repos else []
        print("published:", *sorted(published))
        os.chdir(ROOT)
    return len(failed)


if __name__ == "__main__":
    # This file's folder, the first of the path, has one called hub_cards, which Python would take for the package of that name.
    sys.path.remove(str(Path(__file__).resolve().parent))
    sys.exit(main(sys.argv[1:]))
