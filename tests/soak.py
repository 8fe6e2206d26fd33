"""Train, save, push, load, predict and tune again and again, and look at what a long-running process keeps: memory, files, threads.

    python tests/soak.py --seconds 3600

Every round does the same with the same seeds, so that every number must come out as in the first round, bit for bit. The Hub is one on the
loopback interface, in a process of its own. A line for each round: seconds since the start, memory of the process after a collection of
garbage, open files, threads, and files left in the folder for temporary files. The exit status is 1 if a number differed, or if memory
(medians of ten rounds), files or threads are more at the end than after the warm-up: memory by more than 1 %.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent
WARM_UP = 10  # rounds
REPOSITORY = "user/soak"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--rounds", type=int, default=3 * WARM_UP, help="at least so many, however long they take")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as place, loopback_hub() as endpoint:
        os.environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": f"{place}/home", "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
        os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        tempfile.tempdir = f"{place}/temporary"
        os.mkdir(tempfile.tempdir)
        return soak(Path(place), arguments.seconds, arguments.rounds)


def soak(place: Path, seconds: float, rounds: int) -> int:
    """Go round until the time is over, print the table, and return the exit status."""
    steps = Steps(place)
    started, seen, first = time.monotonic(), [], None
    print(f"{'round':>5} {'seconds':>7} {'MiB':>8} {'files':>5} {'threads':>7} {'left':>4}  digest of every number")
    while time.monotonic() - started < seconds or len(seen) < rounds:
        digest = steps.round()
        first = first or digest
        held = held_now()
        seen.append((*held, digest != first))
        memory, files, threads, left = held
        print(
            f"{len(seen):5} {time.monotonic() - started:7.0f} {memory:8.2f} {files:5} {threads:7} {left:4}  {digest[:16]}",
            flush=True,
        )
    wrong = verdict(seen)
    print(*wrong or [f"{len(seen)} rounds: the same numbers in each, memory flat, nothing left over"], sep="\n")
    return 1 if wrong else 0


def verdict(seen: list[tuple]) -> list[str]:
    """Say what is not as it was."""
    memory, files, threads, left, differs = (list(column) for column in zip(*seen, strict=True))
    early, late = (statistics.median(part) for part in (memory[WARM_UP : 2 * WARM_UP], memory[-WARM_UP:]))
    print(f"memory: {early:.2f} MiB after the warm-up, {late:.2f} MiB at the end ({100 * (late / early - 1):+.2f} %)")
    wrong = []
    if late > 1.01 * early:
        wrong.append(f"WRONG: memory rose from {early:.2f} to {late:.2f} MiB")
    for name, counts in (("open files", files), ("threads", threads), ("temporary files", left)):
        if counts[-1] > counts[WARM_UP]:
            wrong.append(f"WRONG: {counts[WARM_UP]} {name} after the warm-up, {counts[-1]} at the end")
    if any(differs):
        wrong.append(f"WRONG: round {differs.index(True) + 1} came to other numbers than the first")
    return wrong


class Steps:
    """What a round consists of."""

    def __init__(self, place: Path) -> None:
        sys.path[:0] = [str(TESTS), str(TESTS / "fuzzing")]
        from honest import LABELS, TEXTS, save_base
        from transformers import BertTokenizerFast

        self.place, self.base = place, save_base(place / "base")
        self.tokenizer = BertTokenizerFast.from_pretrained(self.base)
        self.texts = [f"{text} {other}" for text in TEXTS for other in TEXTS] * 4
        self.rows = [{**self.tokenizer(text), "labels": index % len(LABELS)} for index, text in enumerate(self.texts)]

    def round(self) -> str:
        """Do everything once, and return a digest of every number that came of it."""
        from huggingface_hub import HfApi
        from transformers import pipeline

        from swag_trainer import load_posterior, tune

        trained = self.train()
        trained.save_pretrained(self.place / "saved")
        trained.push_to_hub(REPOSITORY, card="# Soak")
        cache = self.place / "cache"
        classify = pipeline("swag-text-classification", model=REPOSITORY, device="cpu", model_kwargs=self.where(cache))
        predicted = classify(self.texts, num_samples=4)
        tuned = tune(classify.posterior, classify.model, self.rows, progress=False)
        tuned.save_pretrained(self.place / "tuned")
        again = load_posterior(self.place / "tuned")
        numbers = [trained.digest, predicted, again.digest, again.tuning, again.draw(3, seed=1).vectors.sum().item()]
        HfApi().delete_repo(REPOSITORY)
        shutil.rmtree(cache)
        return hashlib.sha256(repr(numbers).encode()).hexdigest()

    def where(self, cache: Path) -> dict:
        # A repository from the Hub may not name a path; the base of the run is one.
        return {"base_model": str(self.base), "cache_dir": str(cache)}

    def train(self):
        """Train for twelve steps with two saves."""
        from honest import adapted
        from transformers import Trainer, TrainingArguments

        from swag_trainer import Every, SwagCallback

        output = self.place / "output"
        arguments = TrainingArguments(
            output_dir=str(output),
            max_steps=12,
            per_device_train_batch_size=3,
            learning_rate=1e-2,
            save_steps=6,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        swag = SwagCallback(Every(steps=1, start=0.3), rank=4)
        model = adapted(self.base)
        Trainer(model=model, args=arguments, train_dataset=self.rows, processing_class=self.tokenizer, callbacks=[swag]).train()
        shutil.rmtree(output)
        return swag.posterior


def held_now() -> tuple[float, int, int, int]:
    """Return what the process holds: memory in MiB, open files, threads, and files in the folder for temporary files."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed, but not given back to the system, is no growth
    (pages,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return (
        int(pages) / 1024,
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        len(os.listdir(tempfile.tempdir)),
    )


@contextmanager
def loopback_hub() -> Iterator[str]:
    """Run the Hub of the tests in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(TESTS / "minihub.py"), str(port)], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    sys.exit(main())
