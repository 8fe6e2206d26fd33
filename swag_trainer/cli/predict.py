"""Predict texts, images or questions with averaged probabilities and their uncertainty, as JSON Lines, CSV or Parquet."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TextIO

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.classifier import find_task, load_pipeline
from swag_trainer.cli.devices import DeviceOptions
from swag_trainer.cli.files import prepared_outputs, require, write_files
from swag_trainer.cli.options import ClassifierOptions
from swag_trainer.cli.prediction_formats import FORMATS, as_json_lines
from swag_trainer.cli.prediction_input import examples_to_classify
from swag_trainer.cli.prediction_journal import PARTIAL_SUFFIX, PredictionJournal
from swag_trainer.cli.task_inputs import arguments_of, check_inputs, checked, input_of, record_of, refuse_files
from swag_trainer.cli.text_sources import Example
from swag_trainer.errors import SwagError, shortened
from swag_trainer.evaluation.identity import identity
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import PredictionOptions
from swag_trainer.tasks import recorded_task
from swag_trainer.tasks.base import Task

# Keys of a prediction: a column of the input that is called so gets the prefix "input_".
_OWN_KEYS = {
    "line",
    "text",
    "label",
    "score",
    "entropy",
    "mutual_information",
    "between_members",
    "ood_score",
    "top_label",
    "reason",
    "prediction_set",
    "labels",
    "scores",
    "choice",
    "predictions",
    "entities",
}
# Options that change nothing about a prediction but its place, or the rounding of its last digits.
_NOT_OF_THE_PREDICTIONS = {"config", "debug", "model", "output", "overwrite", "resume", "batch_size", "device"}


@dataclass(frozen=True, kw_only=True)
class Options(ClassifierOptions, DeviceOptions):
    """Texts, and options of the pipeline."""

    positionals: ClassVar[tuple[str, ...]] = ("model", "texts")
    sources: ClassVar[tuple[str, ...]] = ("dataset",)
    counts: ClassVar[tuple[str, ...]] = ("batch_size",)

    texts: list[str] = field(
        default_factory=list,
        metadata={"help": "texts to classify, or paths of images; '-' reads one a line from standard input"},
    )
    file: str | None = field(
        default=None,
        metadata={
            "help": "a .txt file with a text a line, or a .csv, .tsv, .jsonl or .json file, whose other columns are kept; '-' is standard "
            "input"
        },
    )
    dataset: str | None = field(default=None, metadata={"help": "'name' or 'name:config' on the Hub, or a folder of files"})
    split: str = field(default="test", metadata={"help": "of --dataset"})
    text_column: str | None = field(default=None, metadata={"help": "column of the texts, where its name is not a usual one"})
    output: str | None = field(
        default=None, metadata={"help": "a .jsonl, .csv or .parquet file; default: JSON Lines on standard output"}
    )
    num_samples: int | None = field(default=None, metadata={"help": "number of draws; default: that of the tuning, or 10"})
    seed: int | None = field(default=None, metadata={"help": "of the draws; default: that of the tuning, or 0"})
    scale: float | None = field(
        default=None, metadata={"help": "factor of the covariance, 0 for the mean; default: the posterior's own"}
    )
    abstain_below: float | None = field(default=None, metadata={"help": "give no label below this score"})
    risk: float | None = field(
        default=None,
        metadata={"help": "abstain so that at most this fraction of the given labels is wrong; needs a tuned posterior"},
    )
    coverage: float | None = field(
        default=None, metadata={"help": "give labels to this fraction of the texts; needs a tuned posterior"}
    )
    ood: float | None = field(
        default=None,
        metadata={"help": "give no label from this OOD score on, such as 0.95: beyond that fraction of held-out text"},
    )
    prediction_set: float | None = field(
        default=None, metadata={"help": "list labels that hold the true one with this probability; needs a tuned posterior"}
    )
    prediction_set_method: str | None = field(
        default=None, metadata={"help": "how the sets are made; default: lac, the smallest", "choices": ["lac", "aps", "raps"]}
    )
    candidate_labels: list[str] | None = field(
        default=None, metadata={"help": "labels to choose from, for zero-shot classification"}
    )
    hypothesis_template: str | None = field(
        default=None, metadata={"help": "text with {} for the label, for zero-shot classification"}
    )
    multi_label: bool = field(default=False, metadata={"help": "several labels may be right, for zero-shot classification"})
    aggregation_strategy: str | None = field(
        default=None,
        metadata={
            "help": "how tokens become entities, for token classification; default: none, a record for each token",
            "choices": ["none", "simple", "first", "average", "max"],
        },
    )
    handle_impossible_answer: bool = field(
        default=False, metadata={"help": "the answer may be that there is none, for question answering"}
    )
    batch_size: int = field(default=32, metadata={"help": "texts per forward"})
    resume: bool = field(
        default=False,
        metadata={
            "help": "go on with the predictions of an interrupted command, given the same options; begin where there are none"
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "replace --output, and predictions of an interrupted command"})


def run(options: Options, out: TextIO) -> None:
    """Predict, and write a record for each text in the order of the texts, with the number of its line where it comes from a file.

    Raises:
        SwagError: No texts or several sources of texts, another kind of file, or something that the pipeline refuses; or, after all
            others were predicted, that examples cannot be read.
        ResumableInterrupt: Ctrl-C was pressed, and the predictions so far are kept.
    """
    _check_output(options)
    asked = {name: value for name in PredictionOptions.option_names() if (value := getattr(options, name, None)) is not None}
    PredictionOptions().updated(asked)  # refuses numbers out of range before anything is loaded
    is_begun = options.resume and options.output is not None and Path(f"{options.output}{PARTIAL_SUFFIX}").exists()
    if options.resume and not is_begun and Path(str(options.output)).exists():
        sys.stderr.write(f"{options.output}: finished already.\n")
        return
    refuse_files(options)
    source = examples_to_classify(
        options.texts, options.file, options.dataset, split=options.split, text_column=options.text_column
    )
    with prepared_outputs(files=[options.output], overwrite=options.overwrite or is_begun):
        posterior, task = find_task(options)
        check_inputs(task.name, options)
        task = recorded_task(task.name, posterior.record)
        examples = _Examples(source, lambda example: checked(example, task, options.text_column))
        asked |= arguments_of(task.name, options)
        if options.output is None:
            classifier = _classifier(options, posterior, task, asked)
            for records in _predictions(classifier, examples, asked, options.batch_size, options.text_column):
                out.write(as_json_lines(records))
                out.flush()
        else:
            classifier = _predict_into_file(options, posterior, task, examples, asked)
        if classifier.num_truncated:
            limit = longest_input(classifier.tokenizer, classifier.model)
            warnings.warn(f"{classifier.num_truncated} texts have more than {limit} tokens and were truncated.", stacklevel=2)
    examples.refuse_problems()


class _Examples:
    """Examples one after the other; those that cannot be read are left out and kept for a report.

    Args:
        source: The examples.
        check: Returns an example, with its problem if it cannot be predicted.

    Attributes:
        num_usable: How many can be read; None where that is not known, as they are still coming.
        num_read: How many have come so far.
        problems: Those that cannot be read, so far.
    """

    def __init__(self, source: Iterable[Example], check: Callable[[Example], Example]) -> None:
        source = list(map(check, source)) if isinstance(source, Sized) else map(check, source)
        self.num_usable = sum(each.problem is None for each in source) if isinstance(source, list) else None
        self.num_read = 0
        self.problems: list[Example] = []
        self._source = iter(source)

    def __iter__(self) -> Iterator[Example]:
        for example in self._source:
            self.num_read += 1
            if example.problem is None:
                yield example
            else:
                self.problems.append(example)

    def refuse_problems(self) -> None:
        """Report the examples that were left out, once all others have their predictions.

        Raises:
            SwagError: There are some, or there was none at all; the command's exit code shows it.
        """
        if not self.num_read:
            raise SwagError("There are no texts on standard input.")
        if self.problems:
            shown = "".join(f"\n  {example.where}: {example.problem}" for example in self.problems[:20])
            more = f"\n  and {len(self.problems) - 20} more" if len(self.problems) > 20 else ""
            raise SwagError(f"{len(self.problems)} of {self.num_read} examples have no prediction:{shown}{more}")


def _check_output(options: Options) -> None:
    if options.output is None:
        if options.resume:
            raise SwagError("--resume goes on with the predictions in a file: it needs --output.")
        return
    form = Path(options.output).suffix
    if form not in FORMATS:
        raise SwagError(f"--output is a file that ends in {', '.join(FORMATS)}, got {options.output!r}.")
    if form == ".parquet":
        require("pyarrow.parquet")


def _classifier(options: Options, posterior: WeightPosterior, task: Task, asked: dict[str, Any]) -> Any:
    """Load the pipeline, and refuse what cannot be done before the first text."""
    classifier = load_pipeline(options, posterior, task, device=options.device)
    classifier([], **asked)
    return classifier


def _predict_into_file(
    options: Options, posterior: WeightPosterior, task: Task, examples: _Examples, asked: dict[str, Any]
) -> Any:
    """Predict into a journal, put the predictions into the file when all are there, and return the classifier.

    The journal is checked before the model is loaded, which may take minutes.
    """
    assert options.output is not None
    settings = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in _NOT_OF_THE_PREDICTIONS}
    settings["posterior"] = identity(posterior)
    journal = PredictionJournal(options.output, settings, resume=options.resume, overwrite=options.overwrite)
    with journal.kept():
        _skip_predicted(journal, examples)
        classifier = _classifier(options, posterior, task, asked)
        for records in _predictions(classifier, examples, asked, options.batch_size, options.text_column, done=journal.count):
            journal.append(records)
        write_files({options.output: FORMATS[Path(options.output).suffix](list(journal.records()))})
    journal.delete()
    return classifier


def _skip_predicted(journal: PredictionJournal, examples: _Examples) -> None:
    """Pass over the examples that have a prediction.

    Raises:
        SwagError: They are not the ones that were predicted.
    """
    coming = iter(examples)
    for record in journal.records():
        example = next(coming, None)
        if example is None or example.text != record["text"]:
            where = "missing" if example is None else f"not the text in {example.where}"
            raise SwagError(
                f"The text {shortened(repr(record['text']))}, which the interrupted command predicted, is {where}. Resume with the same texts, "
                "or begin anew with --overwrite, without --resume."
            )


def _predictions(
    classifier: Any, examples: _Examples, asked: dict[str, Any], size: int, text_column: str | None, *, done: int = 0
) -> Iterator[list[dict[str, Any]]]:
    """Yield the records of each batch; a bar on standard error where it takes longer than two seconds."""
    from tqdm import tqdm

    # A person who types texts gets each prediction at once.
    size = 1 if examples.num_usable is None and sys.stdin.isatty() else size
    with tqdm(total=examples.num_usable, initial=done, unit="text", delay=2) as bar:
        texts = iter(examples)
        while part := list(islice(texts, size)):
            inputs = [input_of(classifier.task, example, text_column) for example in part]
            predictions = classifier(inputs, batch_size=size, **asked)
            yield [_record(classifier.task, example, prediction) for example, prediction in zip(part, predictions, strict=True)]
            bar.update(len(part))


def _record(task: str, example: Example, prediction: Any) -> dict[str, Any]:
    line = {} if example.line is None else {"line": example.line}
    own = record_of(task, prediction)
    others = {
        f"input_{name}" if name in _OWN_KEYS or own.get(name, value) != value else name: value
        for name, value in example.others.items()
    }
    return {**line, **others, "text": example.text, **own}
