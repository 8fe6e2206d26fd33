"""The fuzzer on few cases; `tests/fuzzing/fuzz.py` runs as many as there is time for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from case_folders import Place
from harness import SECONDS, Report, run_forked, run_here
from targets import TARGETS

ROOT = Path(__file__).parents[2]
COUNTS = {"posterior": 150, "folder": 10, "checkpoints": 20, "card": 40, "data": 40, "options": 30, "results": 30}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", COUNTS)
def test_mutated_files_are_read_as_they_are_or_refused(place, name, monkeypatch):
    # Red for: an error of another library that escapes, a value taken that a file does not hold, a file that is waited for.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    report = Report()
    for line in run_here(TARGETS[name](place), range(COUNTS[name]), seed=0):
        report.add(line)
    assert not report.findings
    assert report.outcomes["refused"] and sum(report.outcomes.values()) == COUNTS[name]


class Faulty:
    """A target that does everything wrong, case by case."""

    name, allowance = "faulty", 0

    def read_honest(self):
        self.kept = bytearray(150 * 1024**2)

    def run(self, rng):
        kind = rng.choice(["crash", "hang", "memory", "die", "small"])
        if kind == "crash":
            raise KeyError("x")
        if kind == "die":
            os.kill(os.getpid(), 9)
        if kind == "memory":
            return "accepted" if bytearray(150 * 1024**2) else ""
        if kind == "small":
            return "accepted"
        while True:
            pass


def test_the_harness_finds_crashes_hangs_memory_and_deaths(monkeypatch):
    # Red for: a harness that calls everything refused, that dies with its case, or that counts what an honest case needs.
    monkeypatch.setattr("harness.SECONDS", 1.0)
    report = run_forked(Faulty(), 8, seed=0)
    assert sum(report.outcomes.values()) == 8 and set(report.outcomes) == {"crash", "hang", "memory", "accepted"}
    assert SECONDS == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_thousands_of_mutated_files_are_read_as_they_are_or_refused(name):
    # Red for: what happens once in a thousand cases.
    script = [sys.executable, "tests/fuzzing/fuzz.py", "--target", name, "--count", str(20 * COUNTS[name]), "--seed", "1"]
    result = subprocess.run(script, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert re.search(rf"{name}: {20 * COUNTS[name]} cases", result.stdout)
