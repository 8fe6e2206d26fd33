"""Start a worker script in two processes that talk over gloo, with a time limit: a dead lock has to fail, not to hang.

`torchrun` starts them as a user does. `two_processes` gives them the same environment, but forks them from a server that has imported
everything already: the imports take longer than most workers' own work. A worker with a Hub of its own needs `torchrun`: the Hugging Face
libraries read its address when they are imported.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parent
PRELOADED = [
    "peft",
    "transformers.trainer",
    "transformers.pipelines",
    "transformers.models.bert.modeling_bert",
    "swag_trainer.collection.callback",
    "swag_trainer.prediction.pipelines.text_classification",
]


def torchrun(script: str, *modes: str, folder: Path, seconds: int = 240, **setup: Any) -> list[dict[str, Any]]:
    """Run ``script`` of the tests in two processes of ``torch.distributed.run``.

    Args:
        script: Path of the worker script in the tests' folder; it calls `work`.
        modes: What it is to do, one after the other.
        folder: For everything it writes.
        seconds: How long it may take altogether.
        setup: JSON values for it.

    Returns:
        For each process, in their order, what each mode returned: ``{mode: result}``.
    """
    _write_setup(folder, setup, seconds)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, str(TESTS / script), str(folder), *modes],
        env={**os.environ, **_environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=seconds + 30)  # the workers watch the time too, and say where they stand
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher takes its children along
        output, _ = process.communicate()
        raise AssertionError(f"{script} {modes} did not end.\n{output[-8000:]}") from None
    assert process.returncode == 0, output[-12000:]
    return _results(folder)


def two_processes(script: str, *modes: str, folder: Path, seconds: int = 240, **setup: Any) -> list[dict[str, Any]]:
    """Run ``script`` as `torchrun` does, in two processes forked from a server; arguments and results are the same."""
    _write_setup(folder, setup, seconds)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context, deadline = _server(), time.monotonic() + seconds + 30
    workers = [
        context.Process(target=_run_worker, args=(rank, port, str(TESTS / script), [str(folder), *modes])) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    # The one that fails first says why; the other would wait for it.
    while all(worker.exitcode in (None, 0) for worker in workers) and any(worker.is_alive() for worker in workers):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    failed = [worker.exitcode for worker in workers] != [0, 0]
    for worker in workers:
        worker.terminate()
        worker.join()
    if failed:
        output = "\n".join((folder / f"output{rank}.txt").read_text(errors="replace")[-8000:] for rank in range(2))
        raise AssertionError(f"{script} {modes} failed or did not end.\n{output}")
    return _results(folder)


@functools.cache
def _server() -> ForkServerContext:
    """A process without threads that has imported the libraries, and from which workers are forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _changed_environment(_environment()):
        context.Process(target=int).start()
    return context


def _run_worker(rank: int, port: int, script: str, arguments: list[str]) -> None:
    """Be process ``rank`` of the two: the environment that torchrun gives, and the script as the main module."""
    with open(Path(arguments[0]) / f"output{rank}.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def _write_setup(folder: Path, setup: dict[str, Any], seconds: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "setup.json").write_text(json.dumps({**setup, "seconds": seconds}))


def _environment() -> dict[str, str]:
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def _changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= changes
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _results(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def work(modes: Mapping[str, Callable[[Path, dict[str, Any]], Any]]) -> None:
    """Do in a worker what `torchrun` or `two_processes` asked for; call it as the script's last line.

    Args:
        modes: A function for each mode, called with its folder and the setup. It returns tensors, numbers and texts, in lists or
            dictionaries.
    """
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    setup = json.loads((folder / "setup.json").read_text())
    faulthandler.dump_traceback_later(setup["seconds"], exit=True)
    results = {}
    for name in names:
        (folder / name).mkdir(exist_ok=True)
        results[name] = modes[name](folder / name, setup)
    torch.save(results, folder / f"rank{os.environ['RANK']}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def as_text(config):
    """An adapter's configuration to compare; PEFT writes its sets in another order in each process."""
    return {key: str(sorted(value) if isinstance(value, list) else value) for key, value in config.items()}
