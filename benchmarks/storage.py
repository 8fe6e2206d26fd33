"""Size, memory and time of a posterior's file: float32, bfloat16 and, with --baseline, the code of another checkout.

    python benchmarks/storage.py --baseline ../other-checkout

Every save and every load runs in a process of its own. Peak memory is the growth of the process's largest resident set over what it
holds: before a save that is all it has, after a load the posterior's tensors. The spectrum of the deviations falls off as the argument --decay says:
1 keeps every direction, less lets directions fall below the threshold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ADAPTER = "adapter_model.safetensors"
POSTERIOR = "swag_posterior.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1.2, 9.3], help="millions of weights (default: 1.2 9.3)")
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--decay", type=float, nargs="+", default=[1.0, 0.3], help="energy ratio of neighbouring directions")
    parser.add_argument("--baseline", help="a checkout whose code is measured too, with what it saves by default")
    parser.add_argument("--child", nargs=2, metavar=("ACTION", "SETTINGS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        action, settings = arguments.child
        print(json.dumps((save if action == "save" else load)(**json.loads(settings))))
        return
    here = str(Path(__file__).resolve().parents[1])
    print(
        f"K = {arguments.rank}, {torch.get_num_threads()} thread(s); memory is the peak above what is held, as a multiple of the file."
    )
    print(
        f"{'P':>6} {'decay':>6} {'file as':>9} {'MB':>7} {'/ adapter':>9} {'save: peak':>11} {'s':>6} {'load: peak':>11} {'s':>6}"
    )
    for size in arguments.sizes:
        for decay in arguments.decay:
            versions = [("baseline", arguments.baseline, None)] if arguments.baseline else []
            measured = []
            for name, checkout, dtype in [*versions, ("float32", here, "float32"), ("bfloat16", here, "bfloat16")]:
                with tempfile.TemporaryDirectory(prefix="swag-storage-") as folder:
                    settings = {
                        "folder": folder,
                        "size": int(size * 1e6),
                        "rank": arguments.rank,
                        "decay": decay,
                        "dtype": dtype,
                    }
                    saved = in_process("save", settings, checkout)
                    loaded = in_process("load", {"folder": folder}, checkout)
                    file, adapter = (Path(folder, part).stat().st_size for part in (POSTERIOR, ADAPTER))
                measured.append(file)
                print(
                    f"{size:5.1f}M {decay:6.2f} {name:>9} {file / 1e6:7.1f} {file / adapter:8.2f}x {saved['peak'] / file:10.2f}x "
                    f"{saved['seconds']:6.2f} {loaded['peak'] / file:10.2f}x {loaded['seconds']:6.2f}",
                    flush=True,
                )
            print(f"       bfloat16 takes {measured[-1] / measured[0]:.2f} of {'the baseline' if versions else 'float32'}.")


def in_process(action: str, settings: dict, checkout: str) -> dict:
    """Run one measurement with the code of a checkout."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", action, json.dumps(settings)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(finished.stderr)
    return json.loads(finished.stdout.splitlines()[-1])


def save(folder: str, size: int, rank: int, decay: float, dtype: str | None) -> dict[str, float]:
    """Save a posterior of random deviations and return seconds and the peak in bytes above the posterior."""
    from swag_trainer.posterior.swag import SwagPosterior

    posterior = random_posterior(SwagPosterior, size, rank, decay)
    return measured(lambda: posterior.save_pretrained(folder, **({} if dtype is None else {"dtype": dtype})), loads=False)


def load(folder: str) -> dict[str, float]:
    """Load a posterior and return seconds and the peak in bytes above the loaded posterior."""
    from swag_trainer.posterior.swag import SwagPosterior

    return measured(lambda: SwagPosterior.from_pretrained(folder), loads=True)


def measured(action, *, loads: bool) -> dict[str, float]:
    """Seconds of an action, and how far the resident set rises above what is held; a loaded posterior's tensors count as held."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = resident("VmRSS"), time.perf_counter()
    result = action()
    seconds, peak = time.perf_counter() - start, resident("VmHWM")
    held = before + (bytes_of(result) if loads else 0)
    return {"seconds": seconds, "peak": peak - held}


def bytes_of(posterior) -> int:
    """Bytes of the tensors of a posterior and its adapter."""
    gaussian = vars(posterior.gaussian).values()
    tensors = [*(value for value in gaussian if isinstance(value, torch.Tensor)), *posterior.adapter.tensors.values()]
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)


def resident(field: str) -> int:
    """Bytes of the resident set now (VmRSS) or at its largest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def random_posterior(kind, size: int, rank: int, decay: float):
    """A posterior of 48 weights whose deviations have the energies 1, decay, decay ** 2, ..., in rotated directions."""
    from swag_trainer.posterior.gaussian import LowRankGaussian
    from swag_trainer.posterior.layout import WeightLayout
    from swag_trainer.posterior.saved_adapter import SavedAdapter

    generator = torch.Generator().manual_seed(0)
    width = size // 48
    layout = WeightLayout(tuple(f"layer.{index:02}.weight" for index in range(48)), ((width // 8, 8),) * 48)
    lengths = decay ** (torch.arange(rank) / 2)
    turn = torch.linalg.qr(torch.randn(rank, rank, generator=generator))[0] * lengths
    deviations = torch.randn(rank, layout.size, generator=generator)
    for start in range(0, layout.size, 2**16):
        deviations[:, start : start + 2**16] = turn @ deviations[:, start : start + 2**16] * 1e-3
    mean = torch.randn(layout.size, generator=generator)
    gaussian = LowRankGaussian(mean, torch.rand(layout.size, generator=generator) * 1e-6, deviations)
    weights = {key: weight.clone() for key, weight in layout.unflatten(mean).items()}
    adapter = SavedAdapter({"base_model_name_or_path": "user/base", "peft_type": "LORA"}, weights)
    return assembled(kind, layout, gaussian, adapter)


def assembled(kind, layout, gaussian, adapter):
    """Put a posterior together; the first checkouts have one value for record and collection."""
    try:
        from swag_trainer.posterior.record import PosteriorRecord
        from swag_trainer.posterior.swag import SwagRecord
    except ImportError:
        from swag_trainer.posterior.provenance import Provenance

        return kind(layout, gaussian, Provenance(base_model="user/base", **COLLECTION), adapter)
    return kind(layout, gaussian, PosteriorRecord(base_model="user/base"), SwagRecord(**COLLECTION), adapter)


COLLECTION = {"num_collected": 30, "schedule": "Every(steps=2)", "first_step": 2, "last_step": 60}


if __name__ == "__main__":
    main()
