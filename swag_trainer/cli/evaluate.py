"""Measure SWAG and the methods that it has to beat on held-out text, each figure with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TextIO

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.cli.classifier import class_names, load_classifier, tokenised
from swag_trainer.cli.files import needed, refuse_existing, write_files
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.tables import show
from swag_trainer.cli.text_data import LabelledText, read_foreign, read_text
from swag_trainer.errors import SwagError
from swag_trainer.evaluation.measurement import Measurement, measure
from swag_trainer.evaluation.methods import METHODS, predict_methods
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics import reliability_bins, risk_coverage_curve, uncertainty_scores
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.version import __version__


@dataclass(frozen=True, kw_only=True)
class Options(TextOptions):
    """What to measure on what."""

    model: str = field(metadata={"help": "a folder with a posterior, or a repository on the Hub"})
    split: str = field(default="test", metadata={"help": "rows that nothing was trained, tuned or chosen on"})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "rows to fit the temperature of 'MAP, temperature' on; without it that method is left out"},
    )
    ood: str | None = field(
        default=None, metadata={"help": "text of another kind: rows marked as out of scope, or, where none is marked, all rows"}
    )
    ood_split: str | None = field(default=None, metadata={"help": "split of --ood; that of --split by itself"})
    ood_name: str | None = field(default=None, metadata={"help": "what it is called on the card"})
    methods: list[str] | None = field(default=None, metadata={"help": f"some of {', '.join(map(repr, METHODS))}"})
    draws_file: list[str] | None = field(
        default=None,
        metadata={"help": "NAME=FILE: another method's probabilities of each draw for the same rows, .npz or .safetensors"},
    )
    map_weights: str = field(
        default="last",
        metadata={"help": "weights of 'MAP': 'last' snapshot, or those in the 'adapter' file", "choices": ["last", "adapter"]},
    )
    num_samples: int | None = field(default=None, metadata={"help": "draws; as many as it was tuned with, or 10"})
    seed: int | None = field(default=None, metadata={"help": "of draws and resamples; that of the tuning, or 0"})
    num_bins: int = field(default=15, metadata={"help": "of the calibration errors"})
    num_resamples: int = field(default=1000, metadata={"help": "of the bootstrap"})
    batch_size: int = field(default=32, metadata={"help": "rows per forward"})
    device: str | None = field(default=None, metadata={"help": "such as cpu or cuda:0"})
    output: str | None = field(default=None, metadata={"help": "a .json file with all figures, from which 'card' is made"})
    rows: str | None = field(default=None, metadata={"help": "a .parquet file with what each method said about each row"})
    overwrite: bool = field(default=False, metadata={"help": "replace --output and --rows"})


def run(options: Options, out: TextIO) -> None:
    """Answer, measure, print the table, write the files.

    Raises:
        SwagError: The data or the model cannot be used, or a file is there already.
    """
    refuse_existing(options.output, options.rows, overwrite=options.overwrite)
    needed("rich.table", *(["pyarrow.parquet"] if options.rows else []), *(["matplotlib", "jinja2"] if options.output else []))
    others = _other_methods(options.draws_file or [])
    if options.validation_split is not None and options.validation_split == options.split:
        raise SwagError(
            f"--validation-split and --split are both {options.split!r}: nothing may be fitted on what is measured."
        )
    known = read_text(options, options.split)
    validation = None if options.validation_split is None else read_text(options, options.validation_split)
    foreign = None if options.ood is None else read_foreign(options.ood, options.ood_split or options.split)
    if foreign is not None and set(foreign.foreign) & set(known.texts):
        raise SwagError(f"Texts of --ood {options.ood!r} are also among the rows to measure; it needs text of another kind.")
    classifier = load_classifier(options.model, device=options.device)
    classes, posterior, tokenizer = class_names(classifier), classifier.posterior, classifier.tokenizer
    labels = known.numbers(classes)
    tuning = posterior.tuning
    num_samples = options.num_samples or (10 if tuning is None else tuning.num_samples)
    seed = options.seed if options.seed is not None else (0 if tuning is None else tuning.seed)
    if options.map_weights == "last":
        _move_to_last_snapshot(classifier.model, posterior)
    answers = predict_methods(
        classifier.model,
        posterior,
        tokenised(tokenizer, known.texts),
        foreign=None if foreign is None else tokenised(tokenizer, foreign.foreign),
        validation=None if validation is None else tokenised(tokenizer, validation.texts, validation.numbers(classes)),
        num_samples=num_samples,
        seed=seed,
        methods=options.methods,  # type: ignore[arg-type]  # names of strangers are refused there
        batch_size=options.batch_size,
    )
    measurement = measure(
        {**answers, **others}, labels, num_bins=options.num_bins, num_resamples=options.num_resamples, seed=seed
    )
    if options.rows is not None:
        measurement.rows_to_parquet(options.rows)
    if options.output is not None:
        text = _evaluation_file(options, measurement, posterior, known, foreign, num_samples, seed)
        write_files({options.output: text.encode()}, overwrite=options.overwrite)
    show(measurement.table(), out)


def _other_methods(given: list[str]) -> dict[str, MethodPredictions]:
    answers = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path or name in METHODS or name in answers:
            raise SwagError(f"--draws-file takes NAME=FILE with a name of its own for each method, got {text!r}.")
        answers[name] = MethodPredictions.from_draws(path)
    return answers


def _move_to_last_snapshot(model: Any, posterior: SwagPosterior) -> None:
    """Put the last weights that were collected into our own model: they are the mean as it stands plus the last deviation."""
    if not posterior.rank:
        raise SwagError(
            "This posterior kept no deviations, so its last snapshot is not known: --map-weights adapter measures 'MAP' with the "
            "weights in the adapter's file, which are the mean unless it was trained with --final-weights trained."
        )
    AdapterWeights(model, keys=posterior.layout.keys).write(posterior.layout.unflatten(posterior.last_snapshot()))


def _evaluation_file(
    options: Options,
    measurement: Measurement,
    posterior: SwagPosterior,
    known: LabelledText,
    foreign: LabelledText | None,
    num_samples: int,
    seed: int,
) -> str:
    from hub_cards import CardResults
    from hub_cards.identity import identity
    from swag_trainer.cli.results import EvaluationFile

    figures = measurement.figures
    # A card compares methods by the same metrics; one pass has no mutual information to tell foreign rows by.
    shared = [metric for metric in next(iter(figures.values())) if all(metric in found for found in figures.values())]
    times = {name: answers.seconds_per_row for name, answers in measurement.answers.items()}
    card = CardResults(
        dataset=known.name,
        split=known.split,
        revision=known.revision,
        num_examples=len(measurement.labels),
        num_samples=num_samples,
        seed=seed,
        num_bins=measurement.num_bins,
        metrics={name: {metric: found[metric].value for metric in shared} for name, found in figures.items()},
        intervals={
            name: {metric: (found[metric].low, found[metric].high) for metric in shared} for name, found in figures.items()
        },
        interval_level=measurement.level,
        seconds_per_row={name: seconds for name, seconds in times.items() if seconds is not None},
        scale=posterior.scale,
        temperature=None if posterior.tuning is None else posterior.tuning.temperature,
        foreign=None if foreign is None else options.ood_name or _foreign_name(foreign, known),
        num_foreign=None if foreign is None else len(foreign.foreign),
        versions={"swag_trainer": __version__} | {name: version(name) for name in ("torch", "transformers", "peft")},
    )
    return EvaluationFile(
        card=card,
        posterior=identity(posterior),
        map_weights=options.map_weights,
        measurement=measurement.as_json(),
        bins={
            name: reliability_bins(answers.probabilities, measurement.labels, num_bins=measurement.num_bins)
            for name, answers in measurement.answers.items()
        },
        curves={
            name: risk_coverage_curve(
                answers.probabilities.max(axis=1), answers.probabilities.argmax(axis=1) == measurement.labels
            )
            for name, answers in measurement.answers.items()
        },
        uncertainties=_uncertainties(measurement.answers),
    ).to_json()


def _foreign_name(foreign: LabelledText, known: LabelledText) -> str:
    return f"{foreign.name}, {foreign.split}" + (", rows out of scope" if foreign.name == known.name else "")


def _uncertainties(answers: Mapping[str, MethodPredictions]) -> dict[str, tuple[Any, Any]]:
    swag = answers.get("SWAG")
    if swag is None or swag.foreign_probabilities is None:
        return {}
    known = uncertainty_scores(swag.probabilities, swag.mutual_information)
    foreign = uncertainty_scores(swag.foreign_probabilities, swag.foreign_mutual_information)
    return {name: (known[name], foreign[name]) for name in ("entropy", "mutual_information") if name in known}
