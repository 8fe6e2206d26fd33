"""Runs mutated cases one after the other in warm processes, with limits of time and memory, and collects what went wrong."""

from __future__ import annotations

import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SECONDS = (
    10.0  # of processor time; a case that needs more hangs. Waiting for ever is noticed after six times as many by the clock.
)
SLACK = 100 * 1024**2  # bytes of memory above a process that read an honest case, besides what the target allows
_ADDRESS_SPACE = 8 * 1024**3  # above that of the idle process: what asks for more gets a MemoryError
_CASES_OF_A_PROCESS = 500
_CLOCK = struct.Struct("<qdd")


class WrongValuesError(Exception):
    """A mutated case was accepted, and what came of it is not what its files hold."""


class Target(Protocol):
    """Something that reads files.

    Attributes:
        name: For the command line.
        allowance: Bytes of memory that a case may take besides the slack: twice the honest file, and one adapter.
    """

    name: str
    allowance: int

    def read_honest(self) -> None:
        """Read what was not mutated, so that the process has what any case needs."""

    def run(self, rng: random.Random) -> str:
        """Mutate a case, read it, and return "accepted" or "refused".

        Raises:
            WrongValuesError: It was accepted with other values than its files hold.
        """


@dataclass
class Report:
    """What came of a number of cases.

    Attributes:
        outcomes: How many were accepted and refused, and how many went wrong in which way.
        findings: What went wrong: target, number of the case, kind and details.
        slowest: Processor time of the slowest case, in seconds.
        largest: Most memory above a process that read an honest case, in bytes.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    slowest: float = 0.0
    largest: int = 0

    def add(self, line: dict[str, Any]) -> None:
        self.outcomes[line["outcome"]] += 1
        self.slowest = max(self.slowest, line.get("seconds", 0.0))
        self.largest = max(self.largest, line.get("memory", 0))
        if line["outcome"] not in ("accepted", "refused"):
            self.findings.append(line)


def case_rng(target: Target, seed: int, number: int) -> random.Random:
    """Return what decides everything about a case."""
    return random.Random(f"{seed}/{target.name}/{number}")


def run_here(target: Target, numbers: range, seed: int) -> Iterator[dict[str, Any]]:
    """Run cases in this process, each with a limit of time, and yield what came of each."""
    idle = _idle(target)
    for number in numbers:
        yield one_case(target, seed, number, idle)


def one_case(target: Target, seed: int, number: int, idle: int) -> dict[str, Any]:
    """Run a case and return its outcome, seconds and memory."""
    line: dict[str, Any] = {"target": target.name, "case": number, "outcome": "refused"}
    _forget_peak()
    started = time.process_time()
    try:
        with _alarm():
            line["outcome"] = target.run(case_rng(target, seed, number))
    except WrongValuesError as error:
        line |= {"outcome": "wrong values", "detail": str(error)[:600]}
    except _HangError:
        line |= {"outcome": "hang", "detail": traceback.format_exc()[-1500:]}
    except BaseException as error:  # whatever is no SwagError is what is looked for, a panic of Rust and SystemExit too
        if isinstance(error, KeyboardInterrupt):
            raise
        detail = "".join(traceback.format_exception(error, limit=-6))[-1800:]
        line |= {"outcome": "crash", "detail": detail, "error": type(error).__name__}
    line["seconds"] = time.process_time() - started
    line["memory"] = max(0, _peak() - idle)
    if line["memory"] > target.allowance + SLACK and line["outcome"] in ("accepted", "refused"):
        line |= {"outcome": "memory", "detail": f"{line['memory'] / 2**20:.0f} MiB above the process after an honest case"}
    return line


def _idle(target: Target) -> int:
    """Return the memory of this process once it has read an honest case, in bytes.

    The pages of libraries count as memory of the process, and a forked process has none of them at first: the first case would touch
    torch's and the tokenizers', 43 MiB or more, whatever its files hold.
    """
    target.read_honest()
    return _resident()


def run_forked(
    target: Target, count: int, seed: int, *, first: int = 0, on_line: Callable[[dict], None] = lambda line: None
) -> Report:
    """Run cases in children of this process, which are killed when a case hangs and replaced when one dies."""
    report, shared = Report(), mmap.mmap(-1, _CLOCK.size)
    number = first
    while number < first + count:
        last = min(first + count, number + _CASES_OF_A_PROCESS)
        with tempfile.TemporaryFile("w+") as results:
            pid = os.fork()
            if pid == 0:
                _child(target, range(number, last), seed, shared, results)
            hung = _watch(pid, shared)
            results.seek(0)
            lines = [json.loads(text) for text in results if text.endswith("\n")]
        number += len(lines)
        if number < last:  # the child died in the case that is not among the lines
            kind = "hang" if hung else "crash"
            lines.append({"target": target.name, "case": number, "outcome": kind, "detail": "the process was killed or died"})
            number += 1
        for line in lines:
            report.add(line)
            on_line(line)
        print(f"{target.name}: {number - first} of {count} cases: {dict(report.outcomes)}", file=sys.stderr, flush=True)
    return report


def _child(target: Target, numbers: range, seed: int, shared: mmap.mmap, results: Any) -> None:
    status = 1
    try:
        # Address space is what a mapping, a tensor or a list asks for; what is refused is a MemoryError.
        limit = _virtual() + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        shared[:] = _CLOCK.pack(numbers.start, time.monotonic(), time.process_time())
        idle = _idle(target)
        for number in numbers:
            shared[:] = _CLOCK.pack(number, time.monotonic(), time.process_time())
            line = one_case(target, seed, number, idle)
            results.write(json.dumps(line) + "\n")
            results.flush()
        status = 0
    finally:
        os._exit(status)


def _watch(pid: int, shared: mmap.mmap) -> bool:
    """Wait for a child and return whether it was killed because a case hung."""
    began = time.monotonic()
    while True:
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if ended:
            return False
        _, started, used = _CLOCK.unpack(shared[:])
        waited = time.monotonic() - max(started, began)
        # The alarm in the child comes first, unless a library in C never returns.
        if waited > 6 * SECONDS + 5 or (waited > SECONDS and _processor_time(pid) - used > SECONDS + 2):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True
        time.sleep(0.1)


class _HangError(BaseException):
    """The limit of time of a case is over; no reader catches it."""


@contextmanager
def _alarm() -> Iterator[None]:
    def over(*_: Any) -> None:
        raise _HangError

    before = [signal.signal(number, over) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def _resident() -> int:
    return _status("VmRSS")


def _virtual() -> int:
    return _status("VmSize")


def _peak() -> int:
    return _status("VmHWM")


def _forget_peak() -> None:
    """Let the peak of this process begin anew, see proc(5)."""
    Path("/proc/self/clear_refs").write_text("5")


def _processor_time(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
