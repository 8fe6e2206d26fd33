"""Methods of the paper: what each draws from, the draws of each, and ensembles of the seeds. Probabilities are kept in files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from swag_trainer import MonteCarloPredictor, Sampling, SwagError, WeightPosterior, load_posterior, tune
from swag_trainer.metrics.temperature import fit_temperature
from swag_trainer.tasks.multiple_choice import MultipleChoice

# Probabilities of each draw for the questions of each set. Shape (S, N, C).
Draws = dict[str, np.ndarray]

# Name in the table -> the training run, and how its posterior is drawn from.
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "MAP": ("map", {}),
    "MC dropout": ("map", {"dropout": True}),
    "SWA": ("swag", {"scale": 0.0}),
    "SWAG": ("swag", {}),
}
TUNED = "SWAG, tuned"
_KEY = "draws of "  # in files: a set may be called as an argument of numpy.savez
# Name in the table -> of which method it averages the runs of all seeds.
ENSEMBLES = {"ensemble": "MAP", "MultiSWA": "SWA", "MultiSWAG": "SWAG"}


def predict(
    model: nn.Module,
    runs: Mapping[str, WeightPosterior],
    task: MultipleChoice,
    rows: Mapping[str, list[dict[str, Any]]],
    folder: Path,
    *,
    num_samples: int,
) -> dict[str, Draws]:
    """Return what each method predicts for every set; "SWAG, tuned" is tuned on the set "validation".

    Args:
        model: The language model with any weights in its adapter.
        runs: The posteriors "map" and "swag".
        task: How questions are put and scored.
        rows: The encoded questions of each set.
        folder: Where the draws of each method are kept, and read again.
        num_samples: S.
    """

    def of(posterior: WeightPosterior, **drawing: Any) -> Callable[[], Draws]:
        def draws() -> Draws:
            predictor = MonteCarloPredictor(model, posterior, task=task, num_samples=num_samples, **drawing)
            return {name: predictor.predict(each, return_draws=True).draw_probabilities for name, each in rows.items()}

        return draws

    found = {
        name: kept(folder / f"{name}.npz", of(runs[run], **{"temperature": 1.0, **drawing}))
        for name, (run, drawing) in METHODS.items()
    }
    tuned = folder / "tuned"
    if not (tuned / "swag_posterior.safetensors").exists():
        tune(runs["swag"], model, rows["validation"], sampling=Sampling(num_samples=num_samples)).save_pretrained(tuned)
    chosen = load_posterior(tuned)
    tuning = chosen.tuning
    if tuning is not None and tuning.center == "mean" and not tuning.dropout and chosen.scale == runs["swag"].scale:
        return found | {TUNED: raised(found["SWAG"], tuning.temperature)}  # the same draws
    return found | {TUNED: kept(folder / f"{TUNED}.npz", of(chosen))}


def with_ensembles(seeds: Sequence[Mapping[str, Draws]]) -> dict[str, Draws]:
    """Return the ensembles: the draws of a method in the runs of all seeds, together."""
    return {
        name: {split: np.concatenate([seed[member][split] for seed in seeds]) for split in seeds[0][member]}
        for name, member in ENSEMBLES.items()
    }


def at_temperature(draws: Draws, labels: np.ndarray) -> tuple[Draws, float]:
    """Return the draws at the temperature that fits the set "validation" best, and the temperature."""
    temperature = fit_temperature(_logarithms(draws["validation"]), labels)
    return raised(draws, temperature), temperature


def raised(draws: Draws, temperature: float) -> Draws:
    """Return the draws at a temperature: as if each draw's logits had been divided by it."""
    powers = {name: np.exp(_logarithms(each) / temperature) for name, each in draws.items()}
    return {name: each / each.sum(axis=-1, keepdims=True) for name, each in powers.items()}


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))


def kept(file: Path, compute: Callable[[], Draws]) -> Draws:
    """Return the draws in a file, computed and written first where there is none.

    Raises:
        SwagError: The file is damaged.
    """
    if not file.exists():
        part = file.with_suffix(".part.npz")
        np.savez_compressed(part, **{f"{_KEY}{name}": draws for name, draws in compute().items()})
        part.rename(file)
    try:
        with np.load(file) as arrays:
            return {key.removeprefix(_KEY): draws for key, draws in arrays.items()}
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise SwagError(
            f"{str(file)!r} is damaged: delete it, and it is made again. {type(error).__name__}: {error}"
        ) from error
