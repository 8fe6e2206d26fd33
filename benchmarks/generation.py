"""What generating by S draws costs, in units of one generation by the plain model, on a small random Llama.

    python benchmarks/generation.py

The plain model, the mean and S packed draws generate the same number of tokens, greedily, in turns, in one process and one thread; times are
medians of processor time. Draws one after the other cost S generations. `benchmarks/results/generation.json` has the times of the machine that
this was last run on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from swag_trainer import SwagPosterior, TextGenerator
from swag_trainer.collection.collector import SwagCollector

RESULTS = Path(__file__).parent / "results" / "generation.json"
SIZES = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 8192}
# Prompts in a batch, tokens of each; and which layers have LoRA on their queries and values, None for all.
CELLS: dict[str, tuple[int, int, list[int] | None]] = {
    "1 prompt of 32 tokens": (1, 32, None),
    "1 prompt of 256 tokens": (1, 256, None),
    "4 prompts of 32 tokens": (4, 32, None),
    "1 prompt of 256 tokens, the upper half adapted": (1, 256, [4, 5, 6, 7]),
}


def main() -> None:
    """Measure every cell, print it, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10, help="S")
    parser.add_argument("--new-tokens", type=int, default=32, help="how many tokens each prompt is continued by")
    parser.add_argument("--rounds", type=int, default=3, help="how often each cell is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = {}
    for name, (rows, length, layers) in CELLS.items():
        model, posterior = made(layers)
        ids = torch.randint(1, SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(0))
        cells[name] = measure(model, posterior, ids, arguments.draws, arguments.new_tokens, arguments.rounds)
        print(name, json.dumps(cells[name]), flush=True)
    report = {"torch": torch.__version__, "sizes": SIZES, "draws": arguments.draws, "new tokens": arguments.new_tokens}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report | {"cells": cells}, indent=1) + "\n")


def made(layers: list[int] | None) -> tuple[PeftModel, SwagPosterior]:
    """Make a random Llama with LoRA, and a posterior of three random snapshots of it."""
    set_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES, eos_token_id=None))
    targets = {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": layers}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, init_lora_weights=False, **targets))
    collector = SwagCollector(model, rank=2)
    for step in (1, 2, 3):
        with torch.no_grad():
            for parameter in collector.weights.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        collector.collect(step=step, learning_rate=1e-3)
    posterior = collector.finish()
    assert posterior is not None
    return model.eval(), posterior


def measure(
    model: PeftModel, posterior: SwagPosterior, ids: torch.Tensor, draws: int, new_tokens: int, rounds: int
) -> dict[str, float]:
    """Time the ways in turns. Seconds of the plain model, and the others in units of it."""
    mask, options = torch.ones_like(ids), {"max_new_tokens": new_tokens, "do_sample": False}
    packed, single = TextGenerator(model, posterior, num_samples=draws), TextGenerator(model, posterior, scale=0)
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: model.generate(input_ids=ids, attention_mask=mask, **options),
        "scale 0": lambda: single.generate(ids, mask, **options),
        "draws": lambda: packed.generate(ids, mask, **options),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            if number:  # the first round proves the packing, and warms up
                times[name].append(time.process_time() - begin)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {"plain, seconds": round(medians["plain"], 3)}
    result |= {f"{name} / plain": round(medians[name] / medians["plain"], 2) for name in ways if name != "plain"}
    if packed.obstacle is not None:
        raise SystemExit(f"The draws were not packed: {packed.obstacle}")
    return result


if __name__ == "__main__":
    main()
