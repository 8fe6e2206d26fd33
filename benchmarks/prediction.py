"""What an answer averaged over S draws costs, in units of one plain forward of the same batch, and how exact it is.

    python benchmarks/prediction.py                                  # the table for this CPU, one thread
    python benchmarks/prediction.py --device cuda --dtype bf16       # llama-1B and llama-8B sizes of random weights too
    python benchmarks/prediction.py --posterior demo-output/seed-0   # and the error on a posterior of real text

All variants of a cell are timed in turns in one process; figures are medians, and only their ratios mean anything. Every variant
but the public loop, which draws anew, answers with the same draws and is compared with the plain loop before it is timed. Raw figures
are kept in benchmarks/results/, cell by cell. laplace-torch and baal also answer with one forward for each draw, over other posteriors: the plain loop
stands for them.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, set_seed

from swag_trainer import MonteCarloPredictor, SwagPosterior
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.collector import SwagCollector

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from text_data import DATA, bundled_minilm, read_task  # noqa: E402

RESULTS = Path(__file__).parent / "results"
BERT = {"vocab_size": 30522, "num_labels": 3}
LLAMA = {"vocab_size": 32000, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 512}


@dataclass(frozen=True)
class Size:
    """A model to build: its configuration (None for the MiniLM of the demo, with its weights), what gets LoRA, and which layers (all if None)."""

    config: transformers.PretrainedConfig | None
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None = None


def bert(hidden: int, layers: int, heads: int, adapted: tuple[int, ...] | None = None) -> Size:
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden, **BERT
    )
    return Size(config, ("query", "value"), adapted)


def llama(hidden: int, layers: int, heads: int, key_heads: int, wide: int) -> Size:
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=wide,
        **LLAMA,
    )
    return Size(config, ("q_proj", "v_proj"))


SIZES = {
    "MiniLM-L6": bert(384, 6, 12),
    "MiniLM-L6, its real weights": Size(None, ("query", "value")),
    "MiniLM-L6, last third adapted": bert(384, 6, 12, adapted=(4, 5)),
    "bert-base": bert(768, 12, 12),
    "llama 512x8": llama(512, 8, 8, 8, 1376),
}
GPU_SIZES = {"llama-1B": llama(2048, 16, 32, 8, 8192), "llama-8B": llama(4096, 32, 32, 8, 14336)}
CELLS = [  # size, rows, tokens, draws
    ("MiniLM-L6", 1, 32, 10),
    ("MiniLM-L6", 1, 32, 30),
    ("MiniLM-L6, its real weights", 1, 32, 10),
    ("MiniLM-L6, its real weights", 1, 32, 30),
    ("MiniLM-L6, last third adapted", 1, 32, 30),
    ("MiniLM-L6", 1, 128, 10),
    ("MiniLM-L6", 1, 128, 30),
    ("MiniLM-L6", 8, 32, 10),
    ("MiniLM-L6", 8, 32, 30),
    ("MiniLM-L6", 8, 128, 10),
    ("MiniLM-L6", 32, 32, 10),
    ("MiniLM-L6", 32, 128, 3),
    ("bert-base", 1, 32, 10),
    ("bert-base", 1, 32, 30),
    ("bert-base", 8, 32, 3),
    ("llama 512x8", 1, 32, 10),
    ("llama 512x8", 1, 32, 30),
    ("llama 512x8", 8, 128, 3),
]
GPU_CELLS = [(size, 1, 32, 30) for size in ("MiniLM-L6", "bert-base", "llama-1B", "llama-8B")] + [("bert-base", 8, 128, 30)]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    file = RESULTS / f"prediction-{arguments.device}.json"
    report = json.loads(file.read_text()) if file.exists() else {"cells": {}}
    report["machine"] = f"{processor()}, {arguments.threads} thread(s), {arguments.device} {arguments.dtype}"
    report["versions"] = {module.__name__: module.__version__ for module in (torch, transformers)}
    RESULTS.mkdir(exist_ok=True)

    def keep() -> None:
        file.write_text(json.dumps(report, indent=1) + "\n")

    if arguments.posterior:
        report["error"] = measure_error(arguments)
        print(json.dumps(report["error"], indent=2))
        keep()
    for cell in GPU_CELLS if arguments.device == "cuda" else CELLS:
        if not arguments.only or arguments.only in cell[0]:
            report["cells"]["{}, {} x {}, S={}".format(*cell)] = measure(*cell, arguments)
            keep()
    print(as_table(list(report["cells"].values())))


def processor() -> str:
    """The CPU's name, as Linux knows it."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="how often each variant of a cell is timed")
    parser.add_argument("--only", help="sizes whose name has this in it")
    parser.add_argument("--posterior", help="a folder with a posterior of real text, to measure the Monte-Carlo error on")
    parser.add_argument("--truth-draws", type=int, default=2000)
    parser.add_argument("--truth-rows", type=int, default=24)
    return parser.parse_args()


def measure(name: str, num_rows: int, tokens: int, num_samples: int, arguments: argparse.Namespace) -> dict:
    """Time the variants of one cell in turns."""
    model = build((SIZES | GPU_SIZES)[name], arguments)
    posterior = wandered(model)
    vocabulary = model.config.vocab_size
    batch = {"input_ids": torch.randint(10, vocabulary, (num_rows, tokens), device=arguments.device)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    variants = {
        "one forward": lambda: model(**batch).logits[None],
        "plain loop": PlainLoop(model, posterior, num_samples),
        "public loop": PublicLoop(model, posterior, num_samples),
        "adapter_names": AdapterNames(model, posterior, num_samples),
        "ours": Ours(model, posterior, num_samples),
    }
    calls = {
        variant: (lambda call=call: call(batch)) if isinstance(call, _Variant) else call for variant, call in variants.items()
    }
    with torch.inference_mode():
        expected = calls["plain loop"]()
        for variant in ("ours", "adapter_names"):
            worst = float((calls[variant]() - expected).abs().max())
            if arguments.dtype == "fp32" and worst > 1e-4:
                sys.exit(f"{name}: {variant} differs from the plain loop by {worst:.1e}.")
        times = {variant: [] for variant in calls}
        memory = {}
        for _ in range(arguments.rounds):
            for variant, call in calls.items():
                if arguments.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                times[variant].append(timed(call, arguments.device))
                if arguments.device == "cuda":
                    memory[variant] = torch.cuda.max_memory_allocated()
        times["ours, first batch"] = []
        for _ in range(arguments.rounds):  # with the proofs that the packed forward is right, which a predictor makes once
            fresh = Ours(model, posterior, num_samples)
            times["ours, first batch"].append(timed(lambda fresh=fresh: fresh(batch), arguments.device))
    medians = {variant: statistics.median(values) for variant, values in times.items()}
    row = {
        "size": name,
        "rows": num_rows,
        "tokens": tokens,
        "draws": num_samples,
        "seconds": medians,
        "all": times,
        "memory": memory,
    }
    print(as_table([row]), flush=True)
    return row


def build(size: Size, arguments: argparse.Namespace) -> PeftModel:
    """A classifier of random weights with LoRA r=8 and a head of its own."""
    set_seed(0)
    dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    if size.config is None:
        base = AutoModelForSequenceClassification.from_pretrained(bundled_minilm(), num_labels=3, dtype=dtype)
    else:
        with torch.device(arguments.device):
            base = AutoModelForSequenceClassification.from_config(size.config, dtype=dtype)
    lora = LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=list(size.targets), layers_to_transform=size.layers
    )
    return get_peft_model(base, lora).eval().to(arguments.device)


def wandered(model: PeftModel, snapshots: int = 25) -> SwagPosterior:
    """A posterior of weights that wander at random around where they are; the model is left as it was."""
    collector, generator = SwagCollector(model), torch.Generator().manual_seed(0)
    start = {key: weight.clone() for key, weight in collector.weights.read().items()}
    for step in range(1, snapshots + 1):
        noise = {key: 0.02 * torch.randn(weight.shape, generator=generator) for key, weight in start.items()}
        collector.weights.write({key: weight + noise[key].to(weight) for key, weight in start.items()})
        collector.collect(step=step)
    posterior = collector.posterior()
    collector.weights.write(start)
    return posterior


class _Variant:
    """One way to the logits of S draws, over a copy of the model."""

    def __init__(self, model: PeftModel, posterior: SwagPosterior, num_samples: int) -> None:
        self.model = copy.deepcopy(model)
        self.posterior = posterior
        self.num_samples = num_samples
        self.draws = posterior.sample(num_samples, seed=0)
        self.weights = AdapterWeights(self.model, keys=list(posterior.mean))

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits. Shape (S, B, C)."""
        raise NotImplementedError


class PlainLoop(_Variant):
    """Write a draw, forward; S times."""

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        answers = []
        for index in range(self.num_samples):
            self.weights.write({key: draws[index] for key, draws in self.draws.items()})
            answers.append(self.model(**batch).logits)
        return torch.stack(answers).float()


class PublicLoop(_Variant):
    """As the public SWAG-LoRA code answers: for every batch new draws, weight by weight, on the CPU."""

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        mean, variance, deviations = self.posterior.mean, self.posterior.variance, self.posterior.deviations
        answers = []
        for _ in range(self.num_samples):
            directions = torch.randn(self.posterior.rank)
            draw = {}
            for key in mean:
                diagonal = (variance[key] / 2).sqrt() * torch.randn_like(mean[key])
                low_rank = (deviations[key].flatten(1).T @ directions).view(mean[key].shape) / (
                    2 * (self.posterior.rank - 1)
                ) ** 0.5
                draw[key] = mean[key] + self.posterior.scale**0.5 * (diagonal + low_rank)
            self.weights.write(draw)
            answers.append(self.model(**batch).logits)
        return torch.stack(answers).float()


class AdapterNames(_Variant):
    """PEFT's own way: an adapter for each draw, and a batch that names one for each row. Making the adapters is not timed."""

    def __init__(self, model: PeftModel, posterior: SwagPosterior, num_samples: int) -> None:
        super().__init__(model, posterior, num_samples)
        config = self.model.peft_config["default"]
        for index in range(num_samples):
            self.model.add_adapter(f"draw{index}", config)
        for index in range(num_samples):
            collector = SwagCollector(_activated(self.model, f"draw{index}"), adapter_name=f"draw{index}")
            collector.weights.write({key: draws[index] for key, draws in self.draws.items()})
        self.model.set_adapter("default")
        self.model.eval()

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        names = [f"draw{index}" for index in range(self.num_samples) for _ in batch["input_ids"]]
        copies = {name: value.repeat(self.num_samples, 1) for name, value in batch.items()}
        return self.model(**copies, adapter_names=names).logits.unflatten(0, (self.num_samples, -1)).float()


class Ours(_Variant):
    """`MonteCarloPredictor`, as users call it."""

    def __init__(self, model: PeftModel, posterior: SwagPosterior, num_samples: int) -> None:
        self.predictor = MonteCarloPredictor(model, posterior, num_samples=num_samples, seed=0, progress=False)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        return self.predictor.logits(batch).to(batch["input_ids"].device)


def _activated(model: PeftModel, adapter_name: str) -> PeftModel:
    model.set_adapter(adapter_name)
    return model


def measure_error(arguments: argparse.Namespace) -> dict:
    """Root mean square error of the averaged probabilities against very many draws, and the time per row, on real text."""
    from transformers import AutoTokenizer

    from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification

    model = AutoSwagModelForSequenceClassification.from_pretrained(arguments.posterior)
    posterior = SwagPosterior.from_pretrained(arguments.posterior)
    tokenizer = AutoTokenizer.from_pretrained(arguments.posterior)
    texts = read_task(str(DATA)).texts["test"][: arguments.truth_rows]
    rows = [dict(tokenizer(text)) for text in texts]
    batches = [{name: torch.tensor([value]) for name, value in row.items()} for row in rows]

    loop = PublicLoop(model, posterior, 30)
    truth = MonteCarloPredictor(
        model,
        posterior,
        num_samples=arguments.truth_draws,
        seed=10**6,
        design="iid",
        temperature=1,
        batch_size=1,
        progress=False,
    ).predict(rows)
    set_seed(0)
    ours, public, times = [], [], {"public, S=30": [], "ours, S=10": []}
    for seed in range(5):
        predictor = MonteCarloPredictor(model, posterior, num_samples=10, seed=seed, progress=False)
        for index, batch in enumerate(batches):
            with torch.inference_mode():
                times["ours, S=10"].append(timed(lambda: predictor.logits(batch), "cpu"))  # noqa: B023
                times["public, S=30"].append(timed(lambda: public.append(loop(batch)), "cpu"))  # noqa: B023
            ours.append(predictor.logits(batch).softmax(-1).mean(0)[0] - torch.tensor(truth.probabilities[index]))
            public[-1] = public[-1].softmax(-1).mean(0)[0] - torch.tensor(truth.probabilities[index])
    return {
        "rows": len(rows),
        "scale": posterior.scale,
        "truth_draws": arguments.truth_draws,
        "rmse": {"ours, S=10": rms(ours), "public, S=30": rms(public)},
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "times faster": statistics.median(times["public, S=30"]) / statistics.median(times["ours, S=10"]),
    }


def rms(errors: list[Tensor]) -> float:
    return float(torch.stack(errors).square().mean().sqrt())


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds: on a CPU those that this process computed, which does not count what else the machine was doing."""
    if device != "cuda":
        begin = time.process_time()
        work()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def as_table(rows: list[dict]) -> str:
    lines = [
        "| model | rows x tokens | S | one forward, ms | ours | ours, first batch | plain loop | public loop | adapter_names |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        one = row["seconds"]["one forward"]
        ratios = " | ".join(
            f"{row['seconds'][variant] / one:.1f}" if variant in row["seconds"] else "-"  # kept from an earlier run
            for variant in ("ours", "ours, first batch", "plain loop", "public loop", "adapter_names")
        )
        lines.append(f"| {row['size']} | {row['rows']} x {row['tokens']} | {row['draws']} | {1e3 * one:.1f} | {ratios} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
