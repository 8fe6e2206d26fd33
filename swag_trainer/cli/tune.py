"""Choose centre, scale, dropout, temperature and thresholds on held-out examples of any task with classes, and save them with the posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TextIO

from swag_trainer.calibration.cross_fitting import DEFAULT_SCALE
from swag_trainer.calibration.thresholds import holds_every_label
from swag_trainer.calibration.tune import tune
from swag_trainer.cli.devices import DeviceOptions
from swag_trainer.cli.files import prepared_outputs, require
from swag_trainer.cli.held_out import HeldOutExamples, held_out_examples
from swag_trainer.cli.options import ClassifierOptions, TextOptions
from swag_trainer.cli.tables import show, table_of
from swag_trainer.errors import SwagError
from swag_trainer.posterior import load_posterior
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.tuning import CENTER_NAMES, CalibratedThreshold
from swag_trainer.prediction.sampler import Sampling


@dataclass(frozen=True, kw_only=True)
class Options(ClassifierOptions, TextOptions, DeviceOptions):
    """As `swag_trainer.tune`."""

    counts: ClassVar[tuple[str, ...]] = ("batch_size",)

    split: str = field(default="validation", metadata={"help": "examples that nothing was trained on"})
    train_split: str | None = field(
        default=None,
        metadata={
            "help": "examples it was trained on, for the OOD score; default: what 'train' saved, else --split by cross-fitting"
        },
    )
    output: str | None = field(
        default=None, metadata={"help": "folder for the tuned posterior; default: MODEL, where that is a folder"}
    )
    num_samples: int = field(default=10, metadata={"help": "draws; the pipeline takes as many from then on"})
    seed: int = field(default=0, metadata={"help": "of the draws and of the folds of cross-fitting"})
    scales: list[float] = field(default_factory=lambda: [DEFAULT_SCALE], metadata={"help": "factors of the covariance to try"})
    risks: list[float] = field(
        default_factory=lambda: [0.01, 0.02, 0.05, 0.1], metadata={"help": "fractions of wrong labels to find thresholds for"}
    )
    confidence: float = field(
        default=0.9, metadata={"help": "probability with which each of these thresholds keeps the true risk"}
    )
    coverages: list[float] = field(
        default_factory=lambda: [0.5, 0.7, 0.8, 0.9, 0.95],
        metadata={"help": "fractions of texts that get a label, to find thresholds for"},
    )
    levels: list[float] = field(
        default_factory=lambda: [0.8, 0.9, 0.95],
        metadata={"help": "probabilities with which prediction sets shall hold the true label"},
    )
    batch_size: int = field(default=32, metadata={"help": "examples per forward"})
    overwrite: bool = field(default=False, metadata={"help": "replace an earlier tuning, or what is in --output"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("risks", "confidence", "coverages", "levels"):
            given = getattr(self, name)
            for value in given if isinstance(given, list) else [given]:
                if not 0 < value < 1:
                    raise SwagError(f"--{name} must lie between 0 and 1, got {value:g}.")
        for value in self.scales:
            if not 0 < value < math.inf:
                raise SwagError(f"--scales are factors above 0, got {value:g}.")


def run(options: Options, out: TextIO) -> None:
    """Tune, save, and print what was chosen.

    Raises:
        SwagError: The data or the model cannot be used, or something would be replaced unasked.
    """
    require("rich.table")
    sampling = Sampling(num_samples=options.num_samples, seed=options.seed)
    in_place = options.output is None
    if in_place and not Path(options.model).is_dir():
        raise SwagError(
            f"{options.model!r} is not a folder of this machine, so the tuned posterior needs --output FOLDER; swag-trainer push then "
            "puts it on the Hub."
        )
    folder = Path(options.model if options.output is None else options.output)
    with prepared_outputs(posteriors=[folder], overwrite=options.overwrite or in_place):
        posterior = load_posterior(
            options.model, revision=options.revision, ignore_mismatched_adapter=options.ignore_mismatched_adapter
        )
        if in_place and posterior.tuning is not None and not options.overwrite:
            raise SwagError(f"The posterior in {str(folder)!r} was tuned already; --overwrite replaces that tuning.")
        tuned, data = _tuned(options, posterior, sampling)
        tuned.save_pretrained(folder)
        if not in_place:
            for part in filter(None, (data.classifier.tokenizer, data.classifier.image_processor)):
                part.save_pretrained(folder)
    _report(tuned, data.num_classes, out)
    out.write(f"Saved in {folder}.\n")


def _tuned(options: Options, posterior: WeightPosterior, sampling: Sampling) -> tuple[WeightPosterior, HeldOutExamples]:
    """Return the tuned posterior, and the examples with the pipeline that was loaded for it."""
    data = held_out_examples(options, posterior)
    tuned = tune(
        posterior,
        data.classifier.model,
        data.rows,
        sampling=sampling,
        scales=options.scales,
        risks=options.risks,
        confidence=options.confidence,
        coverages=options.coverages,
        levels=options.levels,
        name=data.name,
        split=data.split,
        revision=data.revision,
        groups=data.groups,
        train_data=data.train_rows,
        batch_size=options.batch_size,
        data_collator=data.data_collator,
    )
    return tuned, data


def _report(posterior: WeightPosterior, num_classes: int, out: TextIO) -> None:
    tuning = posterior.tuning
    assert tuning is not None
    rows = [
        [CENTER_NAMES[each.center], f"{each.scale:g}", _yes(each.dropout), f"{each.temperature:.3f}", f"{each.nll:.4f}"]
        for each in tuning.candidates
    ]
    title = f"{tuning.dataset}, {tuning.split}: {tuning.num_examples} examples to choose by"
    show(table_of(title, ("centre", "scale", "dropout", "best temperature", "NLL"), rows), out)
    energy = "" if tuning.relative_energy is None else f" (relative energy {tuning.relative_energy:.2g})"
    out.write(
        f"Chosen: {tuning.center_name}, scale {posterior.scale:g}{energy}, dropout {_yes(tuning.dropout)}, temperature "
        f"{tuning.temperature:.3f}.\n"
    )
    methods = {f"{posterior.title}, tuned": tuning.nll, **tuning.baselines}
    title = f"The same examples, cross-fitted in {tuning.num_folds} folds"
    show(table_of(title, ("method", "NLL"), [[name, f"{nll:.4f}"] for name, nll in methods.items()]), out)
    if not tuning.thresholds and not tuning.conformal:  # examples with several labels have neither
        return
    columns = ("goal", "lowest score", "coverage", "risk")
    show(table_of("Thresholds for abstaining", columns, map(_row, tuning.thresholds)), out)
    sets = [
        [f"{each.level:g}", each.method, f"{each.mean_size:.2f}" + ", every label" * holds_every_label(each, num_classes)]
        for each in tuning.conformal
    ]
    show(table_of(f"Prediction sets of {num_classes} labels", ("level", "method", "labels on average"), sets), out)
    features = posterior.features
    out.write(
        "No OOD score: the posterior has no class means, and fewer than five examples per class are too few to make some; see "
        "--train-split.\n"
        if features is None
        else f"OOD score: {len(features.means)} class means, distances of {features.num_held_out} examples; --ood up to "
        f"{features.highest_level:.3f}.\n"
    )


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _row(threshold: CalibratedThreshold) -> list[str]:
    meaning = "risk at most {:g}" if threshold.goal == "risk" else "coverage at least {:g}"
    score, risk = ("-" if value is None else f"{value:.3f}" for value in (threshold.threshold, threshold.risk))
    return [meaning.format(threshold.target), score, f"{threshold.coverage:.3f}", risk]
