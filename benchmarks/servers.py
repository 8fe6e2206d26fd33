"""Compare the averaged predictions of adapters on a running server with those of the pipeline, on multiple-choice questions.

    swag-trainer export MODEL --output adapters --num-samples 4
    vllm serve ... --max-logprobs 2000        (the command that was printed, and this option)
    python benchmarks/servers.py MODEL adapters --questions arc_easy.test.jsonl --url http://127.0.0.1:8000/v1

Both predict the same draws: apart from rounding they differ only where the server does not load an adapter as it was meant.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from transformers import pipeline

import swag_trainer  # noqa: F401 - registers the pipelines
from swag_trainer.adapters.export import AdapterIndex
from swag_trainer.serving import ServedPosterior


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the posterior that was exported, of a language model")
    parser.add_argument("adapters", help="what was exported")
    parser.add_argument("--questions", required=True, help="a .jsonl file of questions with their choices")
    parser.add_argument("--limit", type=int, default=12, help="how many questions")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--num-logprobs", type=int, default=2000)
    parser.add_argument("--chat", action="store_true", help="ask the chat interface")
    options = parser.parse_args()
    index = AdapterIndex.read(options.adapters)
    lines = Path(options.questions).read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if isinstance(row["choices"], list) and len(row["choices"]) == 4]
    rows = rows[: options.limit]
    if not rows:
        raise SystemExit(f"{options.questions} has no question with a list of four choices.")
    drawing = {"num_samples": len(index.draws), "seed": index.seed, "scale": index.scale}
    choose = pipeline("swag-multiple-choice", model=options.model, top_k=None, device="cpu", **drawing)
    served = ServedPosterior(options.url, index, chat=options.chat, num_logprobs=options.num_logprobs, timeout=600)
    letters = list("ABCD")
    prompts = [choose.message(row) if options.chat else choose.prompt(row) for row in rows]
    found = served.predict(prompts, letters)
    own = [{one["label"]: one for one in ranking} for ranking in choose(rows)]
    probabilities = np.array([[ranking[letter]["score"] for letter in letters] for ranking in own])
    information = np.array([ranking["A"]["mutual_information"] for ranking in own])
    print(f"{len(rows)} questions, {len(index.draws)} draws; largest differences between server and pipeline")
    print(f"probabilities       {np.abs(found.probabilities - probabilities).max():.1e}")
    print(
        f"mutual information  {np.abs(found.mutual_information - information).max():.1e} (mean {information.mean():.3f} nats)"
    )


if __name__ == "__main__":
    main()
