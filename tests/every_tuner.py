"""A model with an adapter of each kind that PEFT has, small enough to train in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from conftest import WORDS
from decoders import save_decoder
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    TrainerCallback,
    set_seed,
)

TARGETS = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
PROMPT = {"task_type": "SEQ_CLS", "num_virtual_tokens": 3}


# The ranks are final at step 10 of 16.
ADALORA = {"init_r": 6, "target_r": 3, "tinit": 2, "tfinal": 6, "deltaT": 1, "total_step": 16, **TARGETS}
# Name of the kind: name of its class of configurations, and settings.
TUNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ADALORA": ("AdaLoraConfig", ADALORA),
    "ADAMSS": ("AdamssConfig", {"r": 8, "num_subspaces": 2, **TARGETS}),
    "ADAPTION_PROMPT": ("AdaptionPromptConfig", {"task_type": "SEQ_CLS", "adapter_len": 3, "adapter_layers": 1}),
    "BEFT": ("BeftConfig", {"task_type": "SEQ_CLS", "target_modules": ["value"]}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4, **TARGETS}),
    "C3A": ("C3AConfig", {"block_size": 16, **TARGETS}),
    "CARTRIDGE": ("CartridgeConfig", PROMPT | {"task_type": "CAUSAL_LM"}),
    "CPT": (
        "CPTConfig",
        {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3], "task_type": "CAUSAL_LM"},
    ),
    "DEFT": ("DeftConfig", {"r": 4, **TARGETS}),
    "DELORA": ("DeloraConfig", {"r": 4, **TARGETS}),
    "FOURIERFT": ("FourierFTConfig", {"n_frequency": 20, **TARGETS}),
    "FROD": ("FrodConfig", {"progressbar": False, **TARGETS}),
    "GLORA": ("GloraConfig", {"r": 4, **TARGETS}),
    "GRALORA": ("GraloraConfig", {"r": 4, **TARGETS}),
    "HIRA": ("HiraConfig", {"r": 4, **TARGETS}),
    "HRA": ("HRAConfig", {"r": 4, **TARGETS}),
    "IA3": (
        "IA3Config",
        {"task_type": "SEQ_CLS", "target_modules": ["query", "output.dense"], "feedforward_modules": ["output.dense"]},
    ),
    "LILY": ("LilyConfig", {"r": 4, **TARGETS}),
    "LN_TUNING": ("LNTuningConfig", {"task_type": "SEQ_CLS", "target_modules": ["LayerNorm"]}),
    "LOHA": ("LoHaConfig", {"r": 4, **TARGETS}),
    "LOKR": ("LoKrConfig", {"r": 4, **TARGETS}),
    "LORA": ("LoraConfig", {"r": 4, **TARGETS}),
    "MISS": ("MissConfig", {"r": 4, **TARGETS}),
    "MULTITASK_PROMPT_TUNING": ("MultitaskPromptTuningConfig", PROMPT),
    "OFT": ("OFTConfig", {"oft_block_size": 8, **TARGETS}),
    "OSF": ("OSFConfig", {"effective_rank": 8, **TARGETS}),
    "PEANUT": ("PeanutConfig", {"r": 4, **TARGETS}),
    "POLY": ("PolyConfig", {"r": 4, "n_tasks": 1, "n_skills": 2, **TARGETS}),
    "PREFIX_TUNING": ("PrefixTuningConfig", PROMPT),
    "PROMPT_TUNING": ("PromptTuningConfig", PROMPT),
    "PSOFT": ("PsoftConfig", {"r": 8, **TARGETS}),
    "PVERA": ("PveraConfig", {"r": 8, **TARGETS}),
    "P_TUNING": ("PromptEncoderConfig", {"encoder_hidden_size": 16, **PROMPT}),
    "RANDLORA": ("RandLoraConfig", {"r": 4, **TARGETS}),
    "ROAD": ("RoadConfig", {"group_size": 16, **TARGETS}),
    "SHADOW": ("ShadowConfig", {"r": 4, "task_type": "SEQ_CLS"}),
    "SHIRA": ("ShiraConfig", {"r": 4, "random_seed": 0, **TARGETS}),
    "SUPERTUNING": ("SupertuningConfig", {"sparsity": 0.9, **TARGETS}),
    "TINYLORA": ("TinyLoraConfig", {"u": 8, **TARGETS}),
    "TRAINABLE_TOKENS": (
        "TrainableTokensConfig",
        {"task_type": "SEQ_CLS", "token_indices": [5, 7, 9], "target_modules": ["word_embeddings"]},
    ),
    "UNILORA": ("UniLoraConfig", {"r": 4, "theta_d_length": 64, **TARGETS}),
    "VBLORA": ("VBLoRAConfig", {"r": 4, "num_vectors": 16, "vector_length": 16, **TARGETS}),
    "VERA": ("VeraConfig", {"r": 8, **TARGETS}),
    "WAVEFT": ("WaveFTConfig", {"n_frequency": 40, **TARGETS}),
    "XLORA": ("XLoraConfig", {"task_type": "CAUSAL_LM", "hidden_size": 32, "xlora_depth": 1}),
}
# What is made for a decoder alone, in some cases without a head.
DECODERS = {
    "ADAPTION_PROMPT": AutoModelForSequenceClassification,
    "CARTRIDGE": AutoModelForCausalLM,
    "CPT": AutoModelForCausalLM,
}
DECODERS |= {"SHADOW": AutoModelForSequenceClassification, "XLORA": AutoModelForCausalLM}


class AllocateRanks(TrainerCallback):
    """What AdaLoRA's documentation asks for: takes ranks away after each optimizer step, before the gradients are deleted."""

    def on_optimizer_step(self, args, state, control, *, model, **kwargs):
        if hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(state.global_step)


def save_bert(folder: Path, *, num_labels: int) -> Path:
    """A tiny BERT classifier with its tokenizer."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, num_labels=num_labels, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def bases_in(folder: Path) -> dict[str, Path]:
    """The base models, saved where they are not there yet: two classifiers whose heads have 2 and 3 labels, and a decoder."""
    if not folder.is_dir():
        save_bert(folder / "two labels", num_labels=2)
        save_bert(folder / "three labels", num_labels=3)
        save_decoder(folder / "decoder", WORDS)
    return {path.name: path for path in folder.iterdir()}


def tuner_model(name: str, folder: Path) -> tuple[PeftModel, Any]:
    """A model with an adapter of a kind, and its tokenizer.

    Args:
        name: In `TUNERS`.
        folder: For the base models, and for an adapter that another one mixes in.
    """
    # A kind that trains tokens alone leaves the head as it is.
    base = bases_in(folder / "bases")[
        "decoder" if name in DECODERS else "three labels" if name == "TRAINABLE_TOKENS" else "two labels"
    ]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    auto = DECODERS.get(name, AutoModelForSequenceClassification)
    head = {} if auto is AutoModelForCausalLM else {"num_labels": 3, "ignore_mismatched_sizes": True}

    def model() -> Any:
        set_seed(0)
        return auto.from_pretrained(base, pad_token_id=tokenizer.pad_token_id, use_cache=False, **head)

    kind, settings = TUNERS[name]
    if name == "XLORA":
        get_peft_model(model(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).save_pretrained(
            folder / "mixed"
        )
        settings = settings | {"adapters": {"0": str(folder / "mixed")}}
    return get_peft_model(model(), getattr(peft, kind)(**settings)), tokenizer
