"""What one collection costs, beside a training step and beside the public formula applied weight by weight.

Everything is timed in one process, in turns, one thread; the figures are medians and their ratios. Run `make bench`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from swag_trainer.collection.collector import SwagCollector

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


class PerParameter:
    """The formula as Maddox et al. (2019) published it, weight by weight.

    As in their code and in that of the SWAG-LoRA paper, mean, mean square, deviations and the count are buffers of modules, which
    are got and set by name, and the count is read out of its buffer wherever the formula names it.
    """

    def __init__(self, model: torch.nn.Module, rank: int) -> None:
        self.rank = rank
        self.count = torch.zeros(1, dtype=torch.long)
        self.places = []
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            place = torch.nn.Module()
            place.register_buffer("weight_mean", torch.zeros_like(parameter))
            place.register_buffer("weight_square", torch.zeros_like(parameter))
            place.register_buffer("weight_columns", torch.empty(0, parameter.numel()))
            self.places.append((parameter, place, "weight"))

    def collect(self) -> None:
        for parameter, place, name in self.places:
            mean, square = getattr(place, f"{name}_mean"), getattr(place, f"{name}_square")
            mean = mean * self.count.item() / (self.count.item() + 1.0) + parameter.data / (self.count.item() + 1.0)
            square = square * self.count.item() / (self.count.item() + 1.0) + parameter.data**2 / (self.count.item() + 1.0)
            columns = getattr(place, f"{name}_columns")
            columns = torch.cat((columns, (parameter.data - mean).view(-1, 1).t()), dim=0)
            if self.count.item() + 1 > self.rank:
                columns = columns[1:, :]
            setattr(place, f"{name}_columns", columns)
            setattr(place, f"{name}_mean", mean)
            setattr(place, f"{name}_square", square)
        self.count.add_(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig(num_labels=3, **MINILM))
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"]))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    batch = {"input_ids": torch.randint(1000, 20000, (8, 32)), "labels": torch.randint(3, (8,))}
    collector, public = SwagCollector(model, rank=arguments.rank), PerParameter(model, arguments.rank)

    def train() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    times: dict[str, list[float]] = {
        "training step, 8 x 32 tokens": [],
        "collection, ours": [],
        "collection, as published": [],
    }
    for round_number in range(arguments.rounds + arguments.rank):
        taken = [timed(train), timed(lambda step=round_number: collector.collect(step=step)), timed(public.collect)]
        if round_number >= arguments.rank:  # both rings are full from here on
            for name, seconds in zip(times, taken, strict=True):
                times[name].append(seconds)
    step, ours, theirs = (statistics.median(values) for values in times.values())
    weights = collector.layout.size
    kept = sum(tensor.numel() for tensor in collector.moments.tensors().values()) / weights
    print(
        f"MiniLM size, random weights; P = {weights:,}, K = {arguments.rank}, {arguments.threads} thread(s), {arguments.rounds} rounds"
    )
    for name, values in times.items():
        print(
            f"{name:32s} {1e3 * statistics.median(values):9.3f} ms  {100 * statistics.median(values) / step:8.3f} % of a step"
        )
    print(f"as published / ours              {theirs / ours:9.1f} x")
    print(
        f"statistics kept                  {kept:9.1f} x the trained weights (K + 3), {kept * weights * 4 / 1e6:.1f} MB; the row that the next vector is written into comes on top"
    )


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
