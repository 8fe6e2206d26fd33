"""Predict classes of texts with averaged probabilities and their uncertainty, as JSON Lines, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TextIO

from swag_trainer.adapters.positions import longest_input
from swag_trainer.cli.classifier import load_classifier
from swag_trainer.cli.files import prepared_outputs, require, write_files
from swag_trainer.cli.options import ClassifierOptions
from swag_trainer.cli.text_data import read_any_text
from swag_trainer.cli.text_files import read_lines
from swag_trainer.cli.text_sources import Example
from swag_trainer.errors import SwagError
from swag_trainer.prediction.decisions import PredictionOptions

_FORMATS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Options(ClassifierOptions):
    """Texts, and options of the pipeline."""

    positionals: ClassVar[tuple[str, ...]] = ("model", "texts")
    counts: ClassVar[tuple[str, ...]] = ("batch_size",)

    texts: list[str] = field(default_factory=list, metadata={"help": "texts to classify"})
    file: str | None = field(
        default=None, metadata={"help": "a .txt file with a text a line, or a .csv, .tsv, .jsonl or .json file"}
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
    batch_size: int = field(default=32, metadata={"help": "texts per forward"})
    device: str | None = field(default=None, metadata={"help": "such as cpu or cuda:0"})
    overwrite: bool = field(default=False, metadata={"help": "replace --output"})


def run(options: Options, out: TextIO) -> None:
    """Predict, and write a record for each text in the order of the texts, with the number of its line where it comes from a file.

    Raises:
        SwagError: No texts or several sources of texts, another kind of file, or something that the pipeline refuses; or, after all
            others were predicted, that examples cannot be read.
    """
    form = ".jsonl" if options.output is None else Path(options.output).suffix
    if form not in _FORMATS:
        raise SwagError(f"--output is a file that ends in {', '.join(_FORMATS)}, got {options.output!r}.")
    if form == ".parquet":
        require("pyarrow.parquet")
    asked = {name: value for name in PredictionOptions.option_names() if (value := getattr(options, name, None)) is not None}
    PredictionOptions().updated(asked)  # refuses numbers out of range before anything is loaded
    examples = _examples(options)
    with prepared_outputs(files=[options.output], overwrite=options.overwrite):
        classifier = load_classifier(options, device=options.device)
        classifier([], **asked)  # refuses what cannot be done before the first text
        predicted = _predictions(classifier, examples, asked, options.batch_size)
        if options.output is None:
            for row in predicted:
                out.write(_as_jsonl([row]))
                out.flush()
        else:
            rows = list(predicted)
            encoded = {
                ".jsonl": lambda: _as_jsonl(rows).encode(),
                ".csv": lambda: _as_csv(rows),
                ".parquet": lambda: _as_parquet(rows),
            }
            write_files({options.output: encoded[form]()})
        if classifier.num_truncated:
            limit = longest_input(classifier.tokenizer, classifier.model)
            warnings.warn(f"{classifier.num_truncated} texts have more than {limit} tokens and were truncated.", stacklevel=2)
    _refuse_problems(examples)


def _examples(options: Options) -> list[Example]:
    sources = [name for name in ("texts", "file", "dataset") if getattr(options, name)]
    if len(sources) != 1:
        raise SwagError("predict takes texts after MODEL, those of --file, or those of --dataset: give one of the three.")
    if options.texts:
        return [Example(text, None, f"text {number}") for number, text in enumerate(options.texts, start=1)]
    if options.file is not None and not Path(options.file).is_file():
        raise SwagError(f"There is no file {options.file!r}.")
    if options.file is not None and Path(options.file).suffix == ".txt":
        lines = enumerate(read_lines(Path(options.file)), start=1)
        examples = [Example(text, None, f"line {line} of {options.file!r}", line) for line, text in lines if text.strip()]
    else:
        split = None if options.file is not None else options.split
        examples = read_any_text(options.file or str(options.dataset), split, options.text_column)
    if not examples:
        raise SwagError(f"There are no texts in {options.file or options.dataset!r}.")
    return examples


def _predictions(classifier: Any, examples: Sequence[Example], asked: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """Yield a record for each example without a problem; a bar on standard error where it takes longer than two seconds."""
    from tqdm import tqdm

    usable = [example for example in examples if example.problem is None]
    with tqdm(total=len(usable), unit="text", delay=2) as bar:
        for start in range(0, len(usable), size):
            part = usable[start : start + size]
            predictions = classifier([example.text for example in part], batch_size=size, **asked)
            for example, prediction in zip(part, predictions, strict=True):
                line = {} if example.line is None else {"line": example.line}
                yield {**line, "text": example.text, **prediction}
            bar.update(len(part))


def _refuse_problems(examples: Sequence[Example]) -> None:
    """Report the examples that were left out, once all others have their predictions.

    Raises:
        SwagError: There are some; the command's exit code shows it.
    """
    problems = [example for example in examples if example.problem is not None]
    if problems:
        shown = "".join(f"\n  {example.where}: {example.problem}" for example in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise SwagError(f"{len(problems)} of {len(examples)} examples have no prediction:{shown}{more}")


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Return every key of any record: one that abstains has some that others lack."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _as_jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _as_csv(rows: list[dict[str, Any]]) -> bytes:
    """Return a table with empty cells where there is no value; a set of labels as JSON, since a label may hold a comma."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, _columns(rows))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()})
    return buffer.getvalue().encode()


def _as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: [row.get(name) for row in rows] for name in _columns(rows)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
