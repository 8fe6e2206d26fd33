"""Measure a model of any task with classes or choices: every metric with its confidence interval."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TextIO

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.cli.devices import DeviceOptions
from swag_trainer.cli.evaluation_data import EvaluationData, read_evaluation_data
from swag_trainer.cli.files import prepared_outputs, require, write_files
from swag_trainer.cli.options import ClassifierOptions, TextOptions
from swag_trainer.cli.split_names import check_apart
from swag_trainer.cli.tables import show
from swag_trainer.errors import SwagError
from swag_trainer.evaluation.measurement import Measurement, measure
from swag_trainer.evaluation.methods import METHODS, predict_methods
from swag_trainer.evaluation.parquet import predictions_to_parquet
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import PredictionOptions
from swag_trainer.prediction.sampler import Sampling

# Of a model without a posterior: what is compared with the others.
_PLAIN_METHODS = ("MAP, temperature", "MC dropout", "MAP")


@dataclass(frozen=True, kw_only=True)
class Options(ClassifierOptions, TextOptions, DeviceOptions):
    """Options of `swag-trainer evaluate`."""

    counts: ClassVar[tuple[str, ...]] = ("num_samples", "num_bins", "num_resamples", "batch_size")

    sources: ClassVar[tuple[str, ...]] = ("ood",)

    model: str = field(
        metadata={"help": "a folder or a repository on the Hub: with a posterior, a PEFT adapter or a whole text classifier"}
    )
    split: str = field(default="test", metadata={"help": "examples that nothing was trained, tuned or chosen on"})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "examples to fit temperatures on; default: those that it was tuned on, else no method has one"},
    )
    train_split: str | None = field(
        default=None,
        metadata={
            "help": "training examples, for the posteriors that are fitted to them: TFB and Laplace; default: these are left out"
        },
    )
    ood: str | None = field(
        default=None,
        metadata={"help": "out-of-distribution text: the examples marked as out of scope, or all where none is marked"},
    )
    ood_split: str | None = field(default=None, metadata={"help": "split of --ood; default: that of --split"})
    ood_name: str | None = field(default=None, metadata={"help": "name of the out-of-distribution text on the card"})
    labels: list[str] | None = field(
        default=None, metadata={"help": "names of the classes in the order of the logits, for a model without"}
    )
    methods: list[str] | None = field(
        default=None,
        metadata={
            "help": f"some of {', '.join(map(repr, METHODS))}; 'SWAG' has the name of the posterior's family; default: all that apply"
        },
    )
    draws_file: list[str] | None = field(
        default=None,
        metadata={"help": "NAME=FILE: another method's probabilities of each draw for the same examples, .npz or .safetensors"},
    )
    map_weights: str | None = field(
        default=None,
        metadata={
            "help": "weights of 'MAP': the 'last' snapshot (default, for a posterior of snapshots), or those in the 'adapter' file",
            "choices": ["last", "adapter"],
        },
    )
    num_samples: int | None = field(default=None, metadata={"help": "number of draws; default: that of the tuning, or 10"})
    seed: int | None = field(default=None, metadata={"help": "of draws and resamples; default: that of the tuning, or 0"})
    num_bins: int = field(default=15, metadata={"help": "of the calibration errors"})
    num_resamples: int = field(default=1000, metadata={"help": "of the bootstrap"})
    batch_size: int = field(default=32, metadata={"help": "examples per forward"})
    output: str | None = field(default=None, metadata={"help": "a .json file for all metrics, which 'card' reads"})
    rows: str | None = field(
        default=None, metadata={"help": "a .parquet file for each example: its text, and the predictions of each method"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace --output and --rows"})


def run(options: Options, out: TextIO) -> None:
    """Predict, measure, write the files, print the table.

    Raises:
        SwagError: The data or the model cannot be used, or a file is there already.
    """
    require("rich.table", *(["pyarrow.parquet"] if options.rows else []))
    check_apart(options.split, {"--validation-split": options.validation_split, "--train-split": options.train_split})
    asked = PredictionOptions().updated({"num_samples": options.num_samples, "seed": options.seed})
    with prepared_outputs(files=[options.output, options.rows], overwrite=options.overwrite):
        others = _other_methods(options.draws_file or [])
        data = read_evaluation_data(options, others)
        sampling = Sampling().changed(asked.sampling)
        if data.posterior is not None:
            tuned = asked.resolved(data.posterior)
            sampling = Sampling(num_samples=tuned.num_samples, seed=tuned.seed, design=tuned.design)
        measurement = _measured(options, data, others, sampling)
        if options.output is not None:
            write_files({options.output: measurement.to_json().encode()})
    show(measurement.table(), out)
    for sentence in (measurement.ood_verdict, measurement.verdict):
        if sentence is not None:
            out.write(f"{sentence}\n")


def _measured(
    options: Options, data: EvaluationData, others: Mapping[str, MethodPredictions], sampling: Sampling
) -> Measurement:
    """Predict and measure; write the predictions where they are asked for."""
    posterior, map_weights = data.posterior, options.map_weights
    if posterior is None and map_weights is not None:
        raise SwagError(f"--map-weights chooses between weights of a posterior, and {options.model!r} has none. Leave it out.")
    if posterior is not None:
        map_weights = map_weights or ("adapter" if posterior.last_snapshot() is None else "last")
        if map_weights == "last":
            _load_last_snapshot(data.model, posterior)
    skipped: dict[str, str] = {}
    predictions = predict_methods(
        data.model,
        posterior,
        data.rows,
        ood=data.ood,
        validation=data.validation,
        train=data.train,
        sampling=sampling,
        methods=options.methods,
        skipped=skipped,
        batch_size=options.batch_size,
        data_collator=data.data_collator,
    )
    for reason in dict.fromkeys(skipped.values()):
        names = ", ".join(repr(name) for name, other in skipped.items() if other == reason)
        sys.stderr.write(f"Left out: {names}. {reason}\n")
    if taken := sorted(set(predictions) & set(others)):
        raise SwagError(f"--draws-file {taken[0]!r} has the name of a method that is measured too. Give it another name.")
    methods = {**predictions, **others}
    if options.rows is not None:
        predictions_to_parquet(
            options.rows, methods, data.labels, texts=data.texts, ood_texts=data.ood_texts, clusters=data.clusters
        )
    plain = next((name for name in _PLAIN_METHODS if name in methods), None)
    return measure(
        methods,
        data.labels,
        dataset=data.name,
        split=data.split,
        revision=data.revision,
        ood=data.ood_name,
        clusters=data.clusters,
        posterior=posterior,
        sampling=sampling,
        map_weights=map_weights,
        compared=plain if posterior is None else None,
        num_bins=options.num_bins,
        num_resamples=options.num_resamples,
        seed=abs(sampling.seed),
    )


def _other_methods(given: list[str]) -> dict[str, MethodPredictions]:
    predictions: dict[str, MethodPredictions] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path or name in METHODS or name in predictions:
            raise SwagError(f"--draws-file takes NAME=FILE with a name of its own for each method, got {text!r}.")
        predictions[name] = MethodPredictions.from_draws(path)
    return predictions


def _load_last_snapshot(model: Any, posterior: WeightPosterior) -> None:
    """Put the last collected weights into the model, which is no other's."""
    last = posterior.last_snapshot()
    if last is None:
        raise SwagError(
            "This posterior kept no deviations, so its last snapshot is not known: --map-weights adapter measures 'MAP' with the "
            "weights in the adapter's file, which are the mean unless it was trained with --final-weights trained."
        )
    AdapterWeights(model, keys=posterior.layout.keys).write(posterior.layout.unflatten(last))
