"""A tiny random model of every architecture that transformers has, without a network: for the sweep over all of them.

A default configuration is shrunk by the names of its settings: a width is 32 whatever it is called, and so on, in configurations
inside a configuration too. What a few architectures need besides stands in `SPECIAL`.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from swag_trainer import MonteCarloPredictor, SwagError, SwagPosterior
from swag_trainer.collection.collector import SwagCollector

# kind: the mapping of transformers, and PEFT's task type
KINDS = {
    "sequence classification": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "SEQ_CLS"),
    "causal language model": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "CAUSAL_LM"),
    "image classification": ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", None),
    "audio classification": ("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", None),
}

# The first pattern that matches a setting's whole name decides; only whole numbers that are larger are replaced.
_SIZES: tuple[tuple[str, int | None], ...] = (
    (r"num_feat_extract_layers|num_swa_attention_heads", None),
    (r"(num_)?(local_|routed_)?experts_per_tok(en)?|num_selected_experts|moe_top_?k|top_k|moe_k|num_experts_per_topk", 2),
    (r"n?(num_)?_?(local_|routed_)?experts|moe_num_experts|n_routed_experts|num_local_experts|zero_expert_num", 4),
    (
        r"n_group|topk_group|num_expert_group|n_shared_experts|num_shared_experts|moe_num_shared_experts|first_k_dense_replace",
        1,
    ),
    (r".*(num|n)_(key_value|kv)_heads|num_key_value_heads|multi_query_group_num|kv_channels_heads", 2),
    (r".*(layers|layer|blocks|n_layer)|num_hidden_layers|depth|num_hidden_groups|num_self_attends_per_block", 2),
    (r".*(attention_heads|_heads|num_heads|n_head|heads)", 4),
    (r"(qk_nope_|qk_rope_|qk_|v_|attention_|global_)?head_dim|d_kv|kv_channels|dim_head|attention_head_size", 8),
    (r".*_lora_rank|.*low_rank_dim|.*lora_dim", 8),
    (
        r".*(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|d_inner|n_inner|hidden_dim|mlp_dim|inner_dim|mlp_hidden_size|d_ffn|"
        r"mlp_size|dim_ff|dff|expert_hidden_size).*",
        64,
    ),
    (r"vocab_size(_per_layer_input)?|entity_vocab_size|num_embeddings|n_vocab|padded_vocab_size|.*_vocab_size", 99),
    (
        r"max_position_embeddings|n_positions|max_seq_len|max_sequence_length|seq_length|n_ctx|max_source_positions|context_length|"
        r"max_target_positions|max_length|max_2d_position_embeddings|block_size|sliding_window|local_attention|num_hash_buckets|"
        r"encoder_hash_byte_group_vocab|num_latents",
        64,
    ),
    (
        r".*(hidden_size|d_model|d_embed|n_embd|embed_dim|embedding_size|emb_dim|word_embed_proj_dim|projection_dim|model_dim|"
        r"classifier_proj_size|output_dim|lru_width|dim|width|decoder_hidden_size|d_latents|max_width)",
        32,
    ),
    (r"image_size|img_size|input_size", 32),
    (r"patch_size", 8),
    (r"num_codevectors_per_group|num_buckets|num_.*_groups", 16),
)
# Lists of sizes, one for each stage of a vision model: these keep their ratios.
_STAGES: tuple[tuple[str, int], ...] = (
    (r"depths|layers_per_stage|stage_num_blocks|layer_depths", 0),
    (r".*hidden_sizes|embed_dims?|.*channels|.*dims?|conv_dim|attention_sizes|layer_norm_sizes", 16),
)

# model type: settings that its class checks against each other, or that its defaults leave out
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_SWIN = {"window_size": 4, "depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16}
SPECIAL: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_size": [3]},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0}},
    "esm": {"vocab_size": 99},
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "hunyuan_v1_dense": _ROPE,
    "hunyuan_v1_moe": _ROPE,
    "layoutlmv2": {},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8},
    "markuplm": {"max_depth": 2},
    "ministral": _ROPE,
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "attn_layers": ["local", "lsh"]},
    "roc_bert": {"shape_vocab_size": 99, "pronunciation_vocab_size": 99},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "donut-swin": _SWIN,
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
}


def shrunk(config_class: type, overrides: Mapping[str, Any] = {}) -> Any:
    """Return a small configuration of a class."""
    default = config_class()
    small: dict[str, Any] = {}
    for name in sorted(vars(default)):
        value = getattr(default, name, None)
        if isinstance(value, transformers.PreTrainedConfig):
            small[name] = shrunk(type(value), SPECIAL.get(value.model_type, {}))
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)
            if size is not None and value > size:
                small[name] = size
        elif isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value):
            divisor = next((divisor for pattern, divisor in _STAGES if re.fullmatch(pattern, name)), None)
            if divisor is not None:
                small[name] = [min(item, 1) if divisor == 0 else max(4, item // divisor) for item in value]
    stages = [len(value) for name, value in small.items() if name == "depths"]
    if stages and isinstance(getattr(default, "num_heads", None), (list, tuple)) and isinstance(default.embed_dim, int):
        small["embed_dim"] = 8 * default.num_heads[0]
    small |= {name: 1 for name in ("eos_token_id", "bos_token_id") if isinstance(getattr(default, name, None), int)}
    if hasattr(default, "pad_token_id"):
        small["pad_token_id"] = 0
    return config_class(**(small | dict(overrides)))


def architectures(kind: str) -> Iterator[tuple[str, str]]:
    """Yield the model types that transformers has for a kind, and the names of their classes."""
    for model_type, class_names in getattr(modeling_auto, KINDS[kind][0]).items():
        name = class_names if isinstance(class_names, str) else class_names[0]
        if model_type in CONFIG_MAPPING and hasattr(transformers, name):
            yield model_type, name


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture.

    Attributes:
        outcome: "predicts" (the predictor averages over draws), "collects" (no predictor for the task, or the sweep has no inputs for
            it), "refused" (by `SwagCollector`), "PEFT refuses" (to adapt it, or to load what it saved of it) or "not
            built" (transformers needs a library that is not installed, or settings that the sweep does not know).
        fast_path: Whether all draws of a batch went through the model in one forward; None where nothing was predicted.
        reason: Of what is neither predicted nor collected; else empty.
    """

    outcome: str
    fast_path: bool | None = None
    reason: str = ""


def examine(kind: str, model_type: str, class_name: str, folder: Path) -> Outcome:
    """Save a tiny model as a base checkpoint, load it, adapt it with PEFT's own choice of layers, collect, and predict.

    The checkpoint has every weight of the model, so nothing is missing in it, and no refusal to collect is right.
    """
    set_seed(0)
    model_class = getattr(transformers, class_name)
    try:
        model_class(shrunk(CONFIG_MAPPING[model_type], SPECIAL.get(model_type, {}))).save_pretrained(folder)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        StrictDataclassError,
    ) as error:
        return Outcome("not built", reason=_first_line(error))
    try:
        model = adapted(model_class.from_pretrained(folder), kind)
    except (TypeError, ValueError) as error:
        return Outcome("PEFT refuses", reason=_first_line(error))
    try:
        posterior = collected(model)
    except SwagError as error:
        return Outcome("refused" if _plain_peft_loads(model, folder) else "PEFT refuses", reason=_first_line(error))
    batch = {} if kind == "causal language model" else inputs_of(model)
    obstacle = _forward_fails(model, batch) if batch else ""
    if not batch or obstacle:
        return Outcome("collects", reason=obstacle)
    predictor = MonteCarloPredictor(model, posterior, num_samples=2, scale=0.5)
    try:
        predictor.predict(batch)
    except SwagError as error:
        return Outcome("collects", reason=_first_line(error))
    return Outcome("predicts", fast_path=predictor._logits.sampler.obstacle is None)


def _plain_peft_loads(model: PeftModel, folder: Path) -> bool:
    """Does PEFT load the weights that it saved? Not of every architecture, and then a refusal is right."""
    model.save_pretrained(folder / "adapter")
    base = type(model.get_base_model()).from_pretrained(folder)
    try:
        loaded = dict(PeftModel.from_pretrained(base, folder / "adapter").named_parameters())
    except (RuntimeError, ValueError):
        return False
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return all(name in loaded and torch.equal(weight, loaded[name]) for name, weight in trained.items())


def adapted(model: PreTrainedModel, kind: str) -> PeftModel:
    """Return the model with LoRA on the layers that PEFT chooses for the architecture, else on all linear layers but two.

    A router of experts returns several tensors, which LoRA does not add to; a pre-classifier is saved as a whole, as part of the head.
    """
    settings = {"task_type": KINDS[kind][1], "r": 2}
    try:
        return get_peft_model(model, LoraConfig(**settings))
    except ValueError:  # PEFT has no choice for it
        return get_peft_model(
            model, LoraConfig(**settings, target_modules="all-linear", exclude_modules=["router", "pre_classifier"])
        )


def collected(model: PeftModel) -> SwagPosterior:
    """Return a posterior of three snapshots."""
    collector = SwagCollector(model, rank=2)
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        with torch.no_grad():
            for parameter in collector.weights.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        collector.collect(step=step + 1, learning_rate=1e-3)
    return collector.finish()


def inputs_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return a batch of two examples; empty where the sweep has none for the model."""
    base, generator = model.get_base_model(), torch.Generator().manual_seed(0)
    name, config = base.main_input_name, base.config
    if name == "input_ids":
        ids = torch.randint(3, 99, (2, 8), generator=generator)
        ids[:, -1] = 1  # the end of a text, which BART and T5 classify by
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "pixel_values":
        size = getattr(config, "image_size", 32)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return {name: torch.randn(2, getattr(config, "num_channels", 3), *sides, generator=generator)}
    if name == "input_values":
        shape = (2, config.max_length, config.num_mel_bins) if hasattr(config, "num_mel_bins") else (2, 2000)
        return {name: torch.randn(shape, generator=generator)}
    if name == "input_features" and hasattr(config, "num_mel_bins"):
        return {name: torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)}
    if name == "input_features" and hasattr(config, "feature_projection_input_dim"):
        return {name: torch.randn(2, 40, config.feature_projection_input_dim, generator=generator)}
    return {}


def _forward_fails(model: PeftModel, batch: Mapping[str, torch.Tensor]) -> str:
    """Return why the model does not take such inputs, if it does not: some need a layout, a sampling rate or images beside a text."""
    try:
        with torch.inference_mode():
            model.eval()(**batch)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {re.sub(r'/[^ ]*/', '', line)[:160]}"


def table(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Return the outcome of every architecture of a kind, by its model type."""
    rows = {}
    for model_type, class_name in architectures(kind):
        place = folder / model_type
        rows[model_type] = {"class": class_name, **asdict(examine(kind, model_type, class_name, place))}
        shutil.rmtree(place, ignore_errors=True)
    return rows


def main() -> None:
    """Write the table that the documentation holds: python tests/every_architecture.py docs/data/architectures.json."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        tables = {kind: table(Path(folder), kind) for kind in KINDS}
    versions = {name: version(name) for name in ("transformers", "peft")}
    Path(sys.argv[1]).write_text(json.dumps({"versions": versions, "kinds": tables}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
