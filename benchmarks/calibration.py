"""The tables of the README: what `examples/quickstart.py --seeds 5` measured on several data sets, put side by side.

    python examples/quickstart.py --seeds 5 --output runs/demo
    python examples/quickstart.py --seeds 5 --output runs/banking --dataset banking77 --train-rows 500
    python benchmarks/calibration.py demo=runs/demo banking=runs/banking

    python benchmarks/calibration.py --study runs/study --data FOLDER

The first form measures nothing. The metrics of every seed go to benchmarks/results/calibration.json; the tables hold their means and the
95 % intervals of these means (Student), which say what other seeds would change, training rows and initialisation included.
With --study, models are trained, their trajectories are kept, and recipes are compared on them; see benchmarks/study.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t as student

RESULTS = Path(__file__).parent / "results" / "calibration.json"
METRICS = {
    "nll": "NLL",
    "ece": "ECE (15 bins)",
    "brier": "Brier",
    "accuracy": "accuracy",
    "auroc_entropy": "AUROC of OOD text",
}


def main(sources: list[str]) -> None:
    runs = {}
    for source in sources:
        name, _, folder = source.partition("=")
        files = sorted(Path(folder).glob("seed-*/results.json"))
        if len(files) < 2:
            sys.exit(f"{folder!r} has {len(files)} seeds with results.json; at least 2 are needed.")
        runs[name] = [json.loads(file.read_text()) for file in files]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
    for metric, shown in METRICS.items():
        print(f"\n{table(runs, metric, shown)}")
    print(f"\n{wins(runs)}")


def values(seeds: list[dict], method: str, metric: str) -> np.ndarray | None:
    """One metric of each seed; results of earlier versions call the metrics "figures"."""
    methods = [seed["methods"][method] for seed in seeds]
    found = [method.get("metrics", method.get("figures", {})).get(metric) for method in methods]
    return None if None in found else np.array([interval["value"] for interval in found])


def table(runs: dict[str, list[dict]], metric: str, shown: str) -> str:
    methods = list(next(iter(runs.values()))[0]["methods"])
    lines = [f"| {shown} | seeds | {' | '.join(methods)} |", f"|---|---:|{'---:|' * len(methods)}"]
    for name, seeds in runs.items():
        cells = []
        for method in methods:
            found = values(seeds, method, metric)
            if found is None:
                cells.append("-")
                continue
            half = student.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
            cells.append(f"{found.mean():.3f} ± {half:.3f}")
        lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def wins(runs: dict[str, list[dict]]) -> str:
    """On how many seeds SWAG has the lower NLL, seed by seed: the rows and the training data are the same then."""
    others = [method for method in next(iter(runs.values()))[0]["methods"] if method != "SWAG"]
    lines = [f"| seeds on which SWAG's NLL is below that of | {' | '.join(others)} |", f"|---|{'---:|' * len(others)}"]
    for name, seeds in runs.items():
        ours = values(seeds, "SWAG", "nll")
        cells = (f"{int((ours < values(seeds, method, 'nll')).sum())} of {len(seeds)}" for method in others)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--study"]:
        from study.main import main as study  # imports torch and peft, which the tables do not need

        study(sys.argv[2:])
    else:
        main(sys.argv[1:])
