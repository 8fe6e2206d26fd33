"""Targets of the fuzzer: what lies around a posterior's file in its folder, and checkpoints."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case_folders import Place, refused, with_mutated_header
from harness import WrongValuesError
from honest import LABELS, TEXTS, adapted
from mutations import (
    hostile_value,
    json_text,
    mutated_bytes,
    mutated_json,
    mutated_tensors,
    put_special,
)
from safetensors.torch import load as load_safetensors
from transformers import pipeline

from swag_trainer import SwagError, last_complete_checkpoint, posterior_from_checkpoints
from swag_trainer.posterior.saved_adapter import ADAPTER_WEIGHTS
from swag_trainer.posterior.storage import encode
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification


class Folders:
    """Everything around the posterior's file in its folder: settings, adapter, tokenizer, card, config.json."""

    name = "folder"
    _FILES = {
        "adapter_config.json": 6,
        ADAPTER_WEIGHTS: 3,
        "tokenizer.json": 3,
        "tokenizer_config.json": 3,
        "config.json": 2,
        "README.md": 1,
        "special_tokens_map.json": 1,
        "vocab.txt": 1,
        "added_tokens.json": 1,
        "chat_template.jinja": 1,
    }
    _OF_TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "added_tokens.json"}

    def __init__(self, place: Place) -> None:
        self.place = place
        self.files = place.contents["swag"]
        self.allowance = 3 * max(map(len, self.files.values()))
        self.expected = self._predicted(place.honest["swag"])

    def read_honest(self) -> None:
        self._predicted(self.place.honest["swag"])

    def run(self, rng: random.Random) -> str:
        names = rng.choices(list(self._FILES), list(self._FILES.values()), k=rng.choice([1, 1, 1, 2]))
        files = dict(self.files)
        for name in names:
            files[name] = self._mutated(name, self.files.get(name, b"{}"), rng)
        folder = self.place.fresh("folder", files)
        if rng.random() < 0.08:
            put_special(folder / names[0], rng)
        accept_other = rng.random() < 0.3
        try:
            found = self._predicted(folder, ignore_mismatched_adapter=accept_other)
        except SwagError as error:
            return refused(error)
        if not all(np.isfinite(found)):
            raise WrongValuesError(f"{names}: the scores {found} are not finite.")
        if not accept_other and not self._OF_TOKENIZER & set(names) and found != self.expected:
            raise WrongValuesError(f"{names}: the scores {found} are not {self.expected}.")
        return "accepted"

    def _mutated(self, name: str, content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.15:
            return mutated_bytes(content, rng, b'{"auto_map": {"AutoTokenizer": ["x.Y", null]}}')
        if name == ADAPTER_WEIGHTS:
            if rng.random() < 0.4:
                return with_mutated_header(content, rng)
            changed = mutated_tensors(load_safetensors(content), rng)
            return b"".join(map(bytes, encode(changed, {})[0]))
        if name.endswith(".json"):
            return json_text(mutated_json(_hostile_settings(name, json.loads(content), rng), rng), rng)
        return mutated_bytes(content, rng)

    def _predicted(self, folder: Path, **options: Any) -> list[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoSwagModelForSequenceClassification.from_pretrained(str(folder), local_files_only=True, **options)
            classify = pipeline("swag-text-classification", model=model, device="cpu", num_samples=2)
            return [row["score"] for row in classify(TEXTS)]


class Checkpoints:
    """Two checkpoints of a run: the search for the last complete one, and posteriors made of them."""

    name = "checkpoints"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.run_folder = _two_checkpoints(place)
        self.files = {
            path.relative_to(self.run_folder).as_posix(): path.read_bytes()
            for path in sorted(self.run_folder.glob("checkpoint-*/*"))
        }
        self.allowance = 3 * max(map(len, self.files.values()))

    def read_honest(self) -> None:
        posterior_from_checkpoints(self.run_folder)

    def run(self, rng: random.Random) -> str:
        name = rng.choice(sorted(name for name in self.files if not name.endswith("training_args.bin")))
        data, folder = self.files[name], self.place.root / "case" / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.run_folder, folder)
        path = folder / name
        if rng.random() < 0.1:
            put_special(path, rng)
        elif name.endswith(".json") and rng.random() < 0.8:
            path.write_bytes(json_text(mutated_json(json.loads(data), rng), rng))
        elif name.endswith(".safetensors") and rng.random() < 0.6:
            path.write_bytes(with_mutated_header(data, rng))
        else:
            path.write_bytes(mutated_bytes(data, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = last_complete_checkpoint(folder)
            try:
                posterior = posterior_from_checkpoints(folder)
            except SwagError as error:
                return refused(error)
        if found is not None and Path(found).name not in ("checkpoint-2", "checkpoint-4"):
            raise WrongValuesError(f"{found} was found.")
        vectors = []
        for each in ("checkpoint-2", "checkpoint-4"):
            tensors = load_safetensors((folder / each / ADAPTER_WEIGHTS).read_bytes())
            vectors.append(posterior.layout.flatten(tensors).double())
        if not torch.allclose(posterior.mean_vector().double(), sum(vectors) / len(vectors), rtol=1e-5, atol=1e-12):
            raise WrongValuesError("The mean is not that of the checkpoints.")
        return "accepted"


def _hostile_settings(name: str, settings: Any, rng: random.Random) -> Any:
    """Return settings with one that is known to be dangerous somewhere, now and then."""
    if rng.random() < 0.6 or not isinstance(settings, dict):
        return settings
    pattern = r"(bert\.)?((a|e|n|c|o|d|r|\.)+)+(\d|\.|[a-z])*query_"
    known = {
        "adapter_config.json": [
            {"target_modules": pattern},
            {"exclude_modules": pattern},
            {"rank_pattern": {pattern: 3}},
            {"alpha_pattern": {pattern: 3}},
            {"r": 3_000_000},
            {"lora_alpha": 1e300},
            {"peft_type": rng.choice(["XLORA", "ADALORA", "VERA", "PROMPT_TUNING", "IA3", "x"])},
            {"base_model_name_or_path": rng.choice(["/etc", "user/gone", "https://evil.example/x", None])},
            {"layer_replication": [[0, 1], [0, 1]]},
            {"auto_mapping": {"base_model_class": "x", "parent_library": "os"}},
            {"megatron_config": {"x": 1}, "megatron_core": "os"},
            {"modules_to_save": ["bert"]},
            {"init_lora_weights": rng.choice(["olora", "pissa", "loftq", "eva", "x"])},
            {"use_dora": True},
            {"runtime_config": {"ephemeral_gpu_offload": True}},
            {"task_type": rng.choice(["CAUSAL_LM", "x"])},
            {"trainable_token_indices": rng.choice([[0, 10**9], {"x": [1]}])},
            {"layers_to_transform": list(range(1000)), "layers_pattern": pattern},
            {"target_parameters": [pattern]},
        ],
        "tokenizer_config.json": [
            {
                "tokenizer_class": rng.choice(
                    ["x.Y", "LlamaTokenizer", "BertTokenizer", "PreTrainedTokenizerFast", "ByT5Tokenizer"]
                )
            },
            {"auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}},
            {"chat_template": "{{ ''.__class__.__mro__ }}"},
            {"model_max_length": rng.choice([0, -1, 1, 10**30, None])},
            {"pad_token": rng.choice([None, "", "x" * 9999, {"content": "x"}])},
            {"added_tokens_decoder": {"0": {"content": "x" * 1000}, str(10**9): {"content": "y"}}},
            {"vocab_file": "/etc/passwd", "tokenizer_file": "/etc/passwd"},
            {"processor_class": "os"},
        ],
        "tokenizer.json": [
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}},
            {"truncation": {"max_length": 10**12, "strategy": "LongestFirst", "stride": 10**12}},
            {"padding": {"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}},
            {"padding": {"strategy": {"Fixed": 10**7}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}},
            {"model": {"type": "WordLevel", "vocab": {"x": 10**9}, "unk_token": "x"}},
            {"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}},
            {"added_tokens": [{"id": 10**9, "content": "x", "special": True}]},
            {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
        ],
        "config.json": [
            {"auto_map": {"AutoConfig": "mine.Mine"}},
            {"custom_pipelines": {"swag-text-classification": {"impl": "m.M"}}},
        ],
    }
    return {**settings, **rng.choice(known.get(name, [{"x": hostile_value(rng)}]))}


def _two_checkpoints(place: Place) -> Path:
    """Train for four steps, saving twice, with a callback that collects."""
    from transformers import BertTokenizerFast, Trainer, TrainingArguments

    from swag_trainer import Every, SwagCallback

    folder, tokenizer = place.root / "run", BertTokenizerFast.from_pretrained(place.base)
    rows = [{**tokenizer(text), "labels": index % len(LABELS)} for index, text in enumerate(TEXTS * 4)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        save_steps=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    swag = SwagCallback(Every(steps=1), rank=2)
    Trainer(model=adapted(place.base), args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[swag]).train()
    return folder
