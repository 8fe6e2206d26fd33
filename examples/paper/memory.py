"""Memory that the paper's protocol needs, by calculation: nothing is loaded but the language model's config.json.

    python examples/paper/memory.py
    python examples/paper/memory.py --model Qwen/Qwen2.5-7B --length 512 --batch-size 16

Without --model the sizes are those of Llama-2-7B. Training is a step of LoRA (r = 8 on q_proj and v_proj, float32) by AdamW with the letters
of multiple choice; what SwagCallback() collects lies on the CPU and stands below the table. Predicting is the letters of S draws, at most one draw in a forward. Tensors are
followed that have shapes and no content; CUDA's own part, some 0.5 GiB, and what an allocator keeps are not in it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig
from transformers.initialization import no_init_weights

from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.prediction.memory import LiveTensors, estimate_memory

GIB = 2**30
# Float32 numbers for each trained weight: AdamW's two moments beside weight and gradient; and what SwagCallback() holds, see `SwagCollector`.
ADAMW, SWAG = 4, 24


def main(arguments: Sequence[str] | None = None) -> list[tuple[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a causal language model: a name on the Hub or a folder; default: sizes of Llama-2-7B")
    parser.add_argument("--length", type=int, default=256, help="tokens of a question with its choices")
    parser.add_argument("--batch-size", type=int, default=8, help="questions")
    parser.add_argument("--num-samples", type=int, default=10)
    parser.add_argument("--target-modules", nargs="+", default=["q_proj", "v_proj"])
    options = parser.parse_args(arguments)
    config = AutoConfig.from_pretrained(options.model) if options.model else LlamaConfig()
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=options.target_modules)
    posterior = point_posterior_of(config, lora)
    steps = {
        name: step_memory(config, lora, options.batch_size, options.length, checkpointing=checkpointing)
        for name, checkpointing in (("train", False), ("train, gradient checkpointing", True))
    }
    found = []
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        for bits, base in ((None, "bfloat16"), (8, "8 bits"), (4, "4 bits")):
            needs = estimate_memory(
                posterior,
                num_samples=options.num_samples,
                batch_size=options.batch_size,
                length=options.length,
                max_tokens=None,
                dtype=torch.bfloat16,
                bits=bits,
                base_model=folder,
            )
            trained = 4 * ADAMW * posterior.layout.size
            found += [(f"base in {base}: {name}", (needs.base + trained + step) / GIB) for name, step in steps.items()]
            found.append((f"base in {base}: predict with {options.num_samples} draws", needs.total / GIB))
    print(f"{posterior.layout.size:,} weights in the adapter, {needs.num_weights:,} in the base")
    for name, size in found:
        print(f"{name:48} {size:6.1f} GiB")
    print(f"on the CPU while SwagCallback() collects: {4 * SWAG * posterior.layout.size / GIB:.2f} GiB")
    return found


def point_posterior_of(config: PreTrainedConfig, lora: LoraConfig) -> PointPosterior:
    """Return a posterior with the shapes of an adapter of the model."""
    with torch.device("meta"), no_init_weights():
        model = get_peft_model(AutoModelForCausalLM.from_config(config), lora)
        shapes = {key: each.shape for key, each in get_peft_model_state_dict(model).items()}
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    layout, record = WeightLayout.of(tensors), PosteriorRecord(task="swag-multiple-choice")
    return PointPosterior(layout, layout.flatten(tensors), record, SavedAdapter(lora.to_dict(), tensors))


def step_memory(config: PreTrainedConfig, lora: LoraConfig, batch_size: int, length: int, *, checkpointing: bool) -> int:
    """Return the bytes of activations and gradients that live at once in a training step; dropout's masks are not in it."""
    with torch.device("meta"):
        with no_init_weights():
            model: PeftModel = get_peft_model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), lora)
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tokens = torch.zeros(batch_size, length, dtype=torch.long)
        with LiveTensors() as live:
            mask = torch.zeros(batch_size, 1, length, length, dtype=torch.bfloat16)
            inputs = {"input_ids": tokens, "attention_mask": mask, "logits_to_keep": 1, "use_cache": False}
            model(**inputs).logits.float().sum().backward()
    return live.peak


if __name__ == "__main__":
    main()
