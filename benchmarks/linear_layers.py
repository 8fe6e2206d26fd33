"""MKL against oneDNN for the Linear layers of a packed forward: what the rule in `swag_trainer.prediction.packed.onednn` stands on.

    python benchmarks/linear_layers.py

Both multiply the same numbers in turns, in one process and one thread; the times are medians of processor time over 31 rounds. A CPU on
which oneDNN is faster over all shapes may be added to the rule, with these numbers in its docstring. Results are kept by CPU in
benchmarks/results/linear-layers.json.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from swag_trainer.prediction.packed.onednn import prefers_onednn, this_cpu
from swag_trainer.prediction.packed.torch_internals import linear_pointwise

RESULTS = Path(__file__).parent / "results" / "linear-layers.json"
LAYERS = [(384, 384), (384, 1536), (1536, 384)]  # inputs, outputs: MiniLM-L6
ROWS = [32, 128, 480, 960]
ROUNDS = 31
FLOP_PER_TIMING = 1e9


def main() -> None:
    torch.set_num_threads(1)
    cpu = this_cpu()
    cells = {
        f"{inputs} x {outputs}, {rows} rows": measure(inputs, outputs, rows) for inputs, outputs in LAYERS for rows in ROWS
    }
    ratios = [cell["MKL / oneDNN"] for cell in cells.values()]
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report["{} family {}, {}".format(*cpu)] = {
        "torch": torch.__version__,
        "rule": "oneDNN" if prefers_onednn(cpu) else "MKL",
        "MKL / oneDNN, geometric mean": statistics.geometric_mean(ratios),
        "cells": cells,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{cpu}: oneDNN takes 1 / {statistics.geometric_mean(ratios):.2f} of the time of MKL (geometric mean).")


def measure(inputs: int, outputs: int, rows: int) -> dict[str, float]:
    """Time one product in both libraries. GFLOP/s, and the quotient of the median times: above 1 where oneDNN is faster."""
    torch.manual_seed(0)
    layer, x = nn.Linear(inputs, outputs), torch.randn(rows, inputs)
    flop = 2 * inputs * outputs * rows
    repeats = math.ceil(FLOP_PER_TIMING / flop)
    ways: dict[str, Callable[[], object]] = {
        "MKL": lambda: nn.functional.linear(x, layer.weight, layer.bias),
        "oneDNN": lambda: linear_pointwise(x, layer.weight, layer.bias),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for round_number in range(ROUNDS + 1):  # the first one warms up
            for name, multiply in ways.items():
                seconds = timed(multiply, repeats)
                if round_number:
                    times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rates = {f"{name}, GFLOP/s": flop / seconds / 1e9 for name, seconds in medians.items()}
    result = rates | {"MKL / oneDNN": medians["MKL"] / medians["oneDNN"]}
    print(
        f"{inputs} x {outputs}, {rows} rows: " + ", ".join(f"{name} {value:.2f}" for name, value in result.items()), flush=True
    )
    return result


def timed(work: Callable[[], object], repeats: int) -> float:
    """Seconds of processor time of one call."""
    begin = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - begin) / repeats


if __name__ == "__main__":
    main()
