"""What S draws of a mixture cost, in units of S draws of one of its members, and how far both are from a plain loop.

    python benchmarks/mixture.py

Both are timed in turns in one process, on MiniLM-L6 of random weights; the figure is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import transformers
from prediction import SIZES, build, wandered

from swag_trainer import MonteCarloPredictor, PointPosterior, PosteriorMixture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--num-samples", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    arguments.device, arguments.dtype = "cpu", "fp32"
    model = build(SIZES["MiniLM-L6"], arguments)
    members = [wandered(model) for _ in range(arguments.members)]
    mixture = PosteriorMixture.of(members)
    count = arguments.num_samples
    print(f"S = {count}, {arguments.members} members")
    for rows, tokens in ((1, 32), (8, 32), (1, 128)):
        batch = {"input_ids": torch.randint(10, 30000, (rows, tokens))}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        predictors = [MonteCarloPredictor(model, each, num_samples=count, progress=False) for each in (members[0], mixture)]
        loop = [
            MonteCarloPredictor(model, PointPosterior.at(vector, mixture), progress=False).logits(batch)[0]
            for vector in mixture.draw(count, seed=0).vectors
        ]
        worst = float((predictors[1].logits(batch) - torch.stack(loop)).abs().max())
        times: list[list[float]] = [[], []]
        for _ in range(arguments.rounds):
            for own, predictor in zip(times, predictors, strict=True):
                began = time.perf_counter()
                predictor.logits(batch)
                own.append(time.perf_counter() - began)
        alone, mixed = map(statistics.median, times)
        print(f"{rows} x {tokens}: {mixed / alone:.2f} (furthest logit from a plain loop: {worst:.1e})")


if __name__ == "__main__":
    main()
