"""Kill processes while they save a posterior over another one, and look at what lies in the folder.

    python tests/posterior/kill_while_saving.py --kills 200 --seed 0

Every process saves one of several posteriors (SWAG in bfloat16 and float32, a point, a mixture) over the one that lies there, and gets
SIGKILL: half of them at a random time, half just before or after one call of open, write, fsync, replace, ... After every kill each file
is whole, and the folder holds the old posterior, or the new one, or, killed between the two renames, a pair that is refused. The same
save is then made again, and must leave the new posterior. The exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("collection", "fuzzing")]

import kill_and_resume  # noqa: E402  # sets the environment: offline, one thread
from honest import posteriors, save_base  # noqa: E402
from kill_and_resume import Experiment, count_calls, die_at  # noqa: E402

from swag_trainer import AdapterMismatchError, load_posterior  # noqa: E402
from swag_trainer.posterior.base import WeightPosterior  # noqa: E402
from swag_trainer.posterior.storage import read_file  # noqa: E402
from swag_trainer.posterior.tensor_file import read_tensors  # noqa: E402

KINDS = ("swag", "plain", "point", "mixture")


class Saving(Experiment):
    """The posteriors, and the processes that save them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.problems = rng, []
        kill_and_resume.WINDOWS = {"save": (WeightPosterior, "save_pretrained")}
        made = posteriors(save_base(Path("base")))
        self.posteriors = {kind: made[kind] for kind in KINDS}
        self.digests, self.calls, self.seconds = {}, {}, {}
        for kind in KINDS:
            self.process(lambda kind=kind: count_calls(Path("calls.json"), lambda: self.save(kind, Path(kind))))
            self.calls[kind] = kill_and_resume.json.loads(Path("calls.json").read_text())
            started = time.monotonic()
            self.process(lambda kind=kind: self.save(kind, Path(kind)))
            self.seconds[kind] = time.monotonic() - started
            self.digests[kind] = load_posterior(kind).digest
        if self.problems:
            raise SystemExit(self.problems[0])

    def save(self, kind: str, folder: Path) -> None:
        self.posteriors[kind].save_pretrained(folder, dtype="float32" if kind == "plain" else "bfloat16")

    def run(self, kills: int) -> int:
        """Kill that many processes, print what was found, and return the exit status."""
        found, killed = Counter(), 0
        while killed < kills:
            old, new = self.rng.sample(KINDS, 2)
            folder = Path("folder")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(old, folder)
            if not self.attempt(new, folder):
                continue  # it was ready before its time
            killed += 1
            found[self.look(folder, old, new)] += 1
            self.process(lambda new=new, folder=folder: self.save(new, folder))
            if load_posterior(folder).digest != self.digests[new]:
                self.problems.append(f"kill {killed}: saved again, {folder} does not hold {new}")
        for problem in self.problems:
            print("WRONG:", problem)
        counts = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
        print(f"{killed} kills: {counts}; {len(self.problems)} things wrong")
        return 1 if self.problems else 0

    def attempt(self, kind: str, folder: Path) -> bool:
        """Save in a process of its own, and return whether it was killed."""
        if self.rng.random() < 0.5:
            seconds = self.rng.uniform(0, self.seconds[kind])
            return self.process(lambda: self.save(kind, folder), seconds=seconds)
        call = self.rng.choice(sorted(self.calls[kind]))
        number = self.rng.randint(1, self.calls[kind][call])

        def work() -> None:
            die_at(call, number)
            self.save(kind, folder)

        return self.process(work)

    def look(self, folder: Path, old: str, new: str) -> str:
        """Say what a killed process left in the folder."""
        for path in folder.rglob("[!.]*.safetensors"):
            read_file(path) if path.name.startswith("swag_") else read_tensors(path)
        try:
            digest = load_posterior(folder).digest
        except AdapterMismatchError:
            return "refused"
        for kind, what in ((old, "old"), (new, "new")):
            if digest == self.digests[kind]:
                return what
        self.problems.append(f"{folder} holds neither {old} nor {new}")
        return "wrong"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-while-saving-") as folder:
        tempfile.tempdir = folder
        os.chdir(folder)
        return Saving(random.Random(arguments.seed)).run(arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
