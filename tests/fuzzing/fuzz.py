"""Mutate files that this package reads, and look for crashes, hangs, wrong values and memory.

    python tests/fuzzing/fuzz.py --target posterior folder --count 1000 --seed 0
    python tests/fuzzing/fuzz.py --target folder --case 123 --seed 0        # one case again, with its traceback

Every case is decided by target, seed and number. A case may be accepted, if what is read is what its files hold, or refused with a
`SwagError`; whatever else happens is printed, and the exit status is 1. Memory is that above the same process after it read an honest case.
"""

from __future__ import annotations

import os

# One thread: this process forks. Offline: a base model that a mutated file names is not asked for.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

import argparse  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

from case_folders import Place  # noqa: E402
from harness import case_rng, run_forked  # noqa: E402
from targets import TARGETS  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--count", type=int, default=200, help="cases of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this case alone, in this process")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="swag-fuzz-") as folder:
        tempfile.tempdir = folder  # what killed processes leave in the temporary folder goes away with ours
        place = Place(Path(folder))
        for name in arguments.target:
            target = TARGETS[name](place)
            if arguments.case is not None:
                print(name, target.run(case_rng(target, arguments.seed, arguments.case)))
                continue
            started = time.monotonic()
            report = run_forked(target, arguments.count, arguments.seed, first=arguments.first, on_line=_show)
            wrong += len(report.findings)
            outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(report.outcomes.items()))
            print(
                f"{name}: {arguments.count} cases in {time.monotonic() - started:.0f} s: {outcomes}; slowest {report.slowest:.2f} s, most "
                f"memory {report.largest / 2**20:.1f} MiB above an honest case ({target.allowance / 2**20 + 100:.1f} allowed)",
                flush=True,
            )
    return 1 if wrong else 0


def _show(line: dict) -> None:
    if line["outcome"] not in ("accepted", "refused"):
        print(f"WRONG: {line['target']} case {line['case']}: {line['outcome']}\n{line.get('detail', '')}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
