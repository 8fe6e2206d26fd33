"""Start a worker script in two processes that talk over gloo, with a time limit: a dead lock has to fail, not to hang."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parent


def torchrun(script: str, *modes: str, folder: Path, seconds: int = 240, **setup: Any) -> list[dict[str, Any]]:
    """Run ``script`` of the tests in two processes.

    Args:
        script: Path of the worker script in the tests' folder; it calls `work`.
        modes: What it is to do, one after the other.
        folder: For everything it writes.
        seconds: How long it may take altogether.
        setup: JSON values for it.

    Returns:
        For each process, in their order, what each mode returned: ``{mode: result}``.
    """
    folder.mkdir(exist_ok=True)
    (folder / "setup.json").write_text(json.dumps({**setup, "seconds": seconds}))
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, str(TESTS / script), str(folder), *modes],
        env=environment,
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
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def work(modes: Mapping[str, Callable[[Path, dict[str, Any]], Any]]) -> None:
    """Do in a worker what `torchrun` asked for; call it as the script's last line.

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
