"""Kill training runs at random moments, let them go on, and compare what they end with with a run that was left alone.

    python tests/collection/kill_and_resume.py --kills 30 --seed 0

A run is a tiny LoRA BERT with a SwagCallback that saves at every step or every other, in a process of its own. The process gets
SIGKILL, and the next one does what a user's script does: ``trainer.train(resume_from_checkpoint=last_complete_checkpoint(output))``.
It may be killed again; once one comes to the end, the next run begins, until there were enough kills. A kill is aimed

* in time: uniformly over the time that the undisturbed run takes, or
* at a call: the process kills itself just before or after one call of open, write, fsync, replace, unlink, ... while the Trainer saves
  ("save") or while the callback writes the posterior ("end"); first the kind of call is drawn, then which one.

After every kill, no file of ours may be half-written under its name, the output folder must hold the posterior it held before, or the
final one, or be refused, and `last_complete_checkpoint` must find what a comparison with every file of the undisturbed run finds. The
last lines tell the digests of adapter and posterior at the end. The exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import os

# One thread: this process forks, which is safe only as long as it has not started any others. Offline: nothing is looked up.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

import argparse  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import random  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from swag_trainer import Every, SwagCallback, SwagError, SwagPosterior  # noqa: E402
from swag_trainer.collection.checkpoints import last_complete_checkpoint  # noqa: E402
from swag_trainer.posterior.folder import POSTERIOR_FILE  # noqa: E402
from swag_trainer.posterior.storage import read_file  # noqa: E402
from swag_trainer.posterior.tensor_file import read_tensors  # noqa: E402

MAX_STEPS = 12  # two epochs
SAVES = [(1, 2), (2, None), (1, 1), (1, None), (2, 1)]  # save_steps, save_total_limit: one for each run, in turn
WINDOWS = {"save": (Trainer, "_maybe_log_save_evaluate"), "end": (SwagCallback, "on_train_end")}
CALLS = set(
    "open mkdir serialize_file write_record write_end_of_file write flush fsync __exit__ close replace unlink rmdir".split()
)
SECONDS = (
    60  # of processor time; a process that needs more hangs. By the clock it may take twenty times as long, on a busy machine
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-and-resume-") as folder:
        tempfile.tempdir = folder  # what killed processes leave in the temporary folder goes away with ours
        os.chdir(folder)  # the posterior records where its base model lies: "base", every time
        return Experiment(random.Random(arguments.seed)).run(arguments.kills)


class Experiment:
    """The undisturbed runs, the killed ones, and the table."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.problems: list[str] = []
        # The lock of tqdm's progress bars is shared by all processes; one that is killed with it in hand would stop the others.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor_interval = 0
        set_seed(0)
        config = BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            num_labels=3,
            # The model writes this into its configuration at the first step. A process that has no step left never gets there.
            problem_type="single_label_classification",
        )
        BertForSequenceClassification(config).save_pretrained("base")
        gc.freeze()  # the Trainer begins with gc.collect(), 0.4 s for all that was imported here
        self.older, self.reference = Path("older"), Path("undisturbed")
        self.process(lambda: train(self.older, (12, 1), seed=1))
        self.process(lambda: count_calls(Path("calls.json"), lambda: train(self.reference, (1, None))))
        # Timed once more: watching the calls takes time, and so does the first run of all.
        started = time.monotonic()
        self.process(lambda: train(Path("timed"), (1, None)))
        self.duration = time.monotonic() - started
        if self.problems:
            raise SystemExit(self.problems[0])
        self.calls = Counter(json.loads(Path("calls.json").read_text()))
        self.expected = fingerprint(self.reference)
        if fingerprint(Path("timed")) != self.expected or fingerprint(self.older) == self.expected:
            raise SystemExit("Two undisturbed runs must end alike, and a third with another seed must not.")

    def run(self, kills: int) -> int:
        """Kill that many processes, print the table, and return the exit status."""
        calls = sum(self.calls.values()) // 2  # each is counted before and after
        print(f"An undisturbed run takes {self.duration:.2f} s and makes {calls} calls that are aimed at.")
        print(f"{'kill':>4} {'run':>3}  {'save_steps/limit':16} {'aimed at':44} {'found':>6} {'goes on from':>12}")
        killed, resumed, number = 0, 0, 0
        finals = Counter()
        while killed < kills:
            saves, output, begun_at = SAVES[number % len(SAVES)], Path(f"run-{number}"), killed
            if number % 2:
                self.process(lambda output=output: SwagPosterior.from_pretrained(self.older).save_pretrained(output))
            before = len(self.problems)
            while True:
                aim = self.draw() if killed < kills else None
                if not self.attempt(output, saves, aim):
                    break
                killed += 1
                steps = sorted(int(path.name.partition("-")[2]) for path in output.glob("checkpoint-*"))
                chosen = self.check(output)
                row = f"{killed:4} {number:3}  {saves!s:16} {aim!s:44} {steps[-1] if steps else '-':>6}"
                print(f"{row} {chosen or 'the start':>12}", flush=True)
            finals[fingerprint(output)] += 1
            if fingerprint(output) != self.expected:
                self.problems.append(f"run {number} ended with {fingerprint(output)}")
            if len(self.problems) == before:
                resumed += killed - begun_at
            number += 1
        for problem in self.problems:
            print("WRONG:", problem)
        print(f"undisturbed: {self.expected}")
        for final, count in finals.items():
            print(f"  {count:2} runs:   {final}")
        print(f"{resumed} of {killed} kills resumed, in {number} runs; {len(self.problems)} things wrong")
        return 1 if self.problems or resumed != killed else 0

    def draw(self) -> tuple:
        """Half of the kills are aimed in time, a third at a save, the others at the writing of the posterior."""
        window = self.rng.choices(["time", "save", "end"], [3, 2, 1])[0]
        if window == "time":
            return "time", round(self.rng.uniform(0, self.duration), 3)
        call = self.rng.choice(sorted(call for call in self.calls if call.startswith(window)))
        return call, self.rng.randint(1, self.calls[call])

    def attempt(self, output: Path, saves: tuple, aim: tuple | None) -> bool:
        """Train in a process of its own until it ends or is killed; return whether it was killed."""

        def work() -> None:
            if aim is not None and aim[0] != "time":
                die_at(*aim)
            train(output, saves)

        return self.process(work, seconds=aim[1] if aim is not None and aim[0] == "time" else None)

    def process(self, work: Callable[[], None], *, seconds: float | None = None) -> bool:
        """Work in a process of its own, killed after ``seconds``; return whether it was killed. Another bad end is a problem."""
        log = Path("log.txt")
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS,) * 2)
                signal.alarm(20 * SECONDS)
                with open(log, "w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            if seconds is not None and time.monotonic() - started >= seconds:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.0005)
        if status == signal.SIGKILL:
            return True
        if status != 0:
            self.problems.append(f"a process ended with status {status}:\n{log.read_text()[-3000:]}")
        return False

    def check(self, output: Path) -> str | None:
        """Look at what a killed process left; return the name of the checkpoint that the next one goes on from."""
        wrong = self.problems.append
        for path in output.rglob("[!.]*.safetensors"):
            try:
                read_file(path) if path.name.startswith("swag_") else read_tensors(path)
            except SwagError as error:
                wrong(f"a file is not whole: {error}")
        if fingerprint(output) not in (self.expected, fingerprint(self.older), "refused"):
            wrong(f"{output.name} holds a posterior of no run: {fingerprint(output)}")
        found = last_complete_checkpoint(output)
        expected = next((path for path in newest_first(output) if self.is_complete(path)), None)
        if (found and Path(found)) != expected:
            wrong(f"in {output.name} {found} was found, the newest complete checkpoint is {expected}")
        return found and Path(found).name

    def is_complete(self, checkpoint: Path) -> bool:
        """Compare it with the undisturbed run's, file by file; README.md and the training arguments are not needed to go on."""
        originals = (self.reference / checkpoint.name).iterdir()
        try:
            return all(
                content(checkpoint / path.name) == content(path)
                for path in originals
                if path.name not in ("README.md", "training_args.bin")
            )
        except (FileNotFoundError, ValueError, SwagError):
            return False


def content(path: Path) -> object:
    """What must be the same in the same file of two runs."""
    if path.name == "trainer_state.json":
        # A loss is logged as the mean since the last log or since the process began, so it differs after a resume.
        return {**json.loads(path.read_text()), "save_steps": None, "log_history": None}
    # safetensors puts the metadata of a file in another order each time.
    return read_file(path)[2] if path.name.startswith("swag_") else path.read_bytes()


def train(output: Path, saves: tuple[int, int | None], *, seed: int = 0) -> None:
    """What a user's script does, whether it starts the run or goes on with it."""
    set_seed(seed)
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained("base"),
        LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["query", "value"]),
    )
    tokens = torch.randint(5, 40, (24, 8), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": row, "attention_mask": [1] * 8, "labels": index % 3} for index, row in enumerate(tokens)]
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=MAX_STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=saves[0],
        save_total_limit=saves[1],
        logging_steps=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=seed,
    )
    swag = SwagCallback(Every(steps=1, start=0.3), rank=4)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[swag])
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output))


def fingerprint(folder: Path) -> str:
    """The digests of adapter and posterior in a folder, or that there is nothing that may be loaded."""
    try:
        posterior = SwagPosterior.from_pretrained(folder)
    except SwagError:
        return "refused"
    return f"adapter {posterior.adapter.digest[:16]} posterior {read_file(folder / POSTERIOR_FILE)[2][:16]}"


def newest_first(output: Path) -> list[Path]:
    return sorted(output.glob("checkpoint-*"), key=lambda path: -int(path.name.partition("-")[2]))


def count_calls(path: Path, work: Callable[[], None]) -> None:
    counts = Counter()
    watch(lambda call: counts.update([call]))
    work()
    path.write_text(json.dumps(counts))


def die_at(call: str, number: int) -> None:
    """Let this process kill itself at the given one of the calls of a kind."""
    left = number

    def count_down(this: str) -> None:
        nonlocal left
        left -= this == call
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(count_down)


def watch(on_call: Callable[[str], None]) -> None:
    """Report what this process is about to do to files, and has done, while it saves a checkpoint or the posterior."""

    def inside(window: str, method: Callable) -> Callable:
        def hook(frame, event, function) -> None:
            if event not in ("c_call", "c_return"):
                return
            owner, _, name = function.__qualname__.rpartition(".")
            # The owner tells a file's write() from a StringIO's, and os.replace() from str.replace(); torch's writer is a pybind11 class.
            if name in CALLS and (owner in ("", "TextIOWrapper", "BufferedWriter") or owner.startswith("pybind11")):
                on_call(f"{window}: {'before' if event == 'c_call' else 'after'} {name}")

        def watched(*args, **kwargs):
            sys.setprofile(hook)
            try:
                return method(*args, **kwargs)
            finally:
                sys.setprofile(None)

        return watched

    for window, (owner, name) in WINDOWS.items():
        setattr(owner, name, inside(window, getattr(owner, name)))


if __name__ == "__main__":
    logging.getLogger("swag_trainer").setLevel(logging.ERROR)  # passing over checkpoints is what this is about
    sys.exit(main())
