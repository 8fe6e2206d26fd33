"""Predict classes of texts with averaged probabilities and their uncertainty, as JSON Lines, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TextIO

from swag_trainer.cli.classifier import load_classifier
from swag_trainer.cli.files import prepared_outputs, require, write_files
from swag_trainer.cli.options import CommonOptions
from swag_trainer.cli.text_data import read_any_text
from swag_trainer.errors import SwagError
from swag_trainer.prediction.decisions import PredictionOptions

_FORMATS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Texts, and options of the pipeline."""

    positionals: ClassVar[tuple[str, ...]] = ("model", "texts")
    counts: ClassVar[tuple[str, ...]] = ("batch_size",)

    model: str = field(metadata={"help": "a folder with a posterior, or a repository on the Hub"})
    texts: list[str] = field(default_factory=list, metadata={"help": "texts to classify"})
    file: str | None = field(default=None, metadata={"help": "a .txt file with a text a line, or a .jsonl or .csv file"})
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
    prediction_set: float | None = field(
        default=None, metadata={"help": "list labels that hold the true one with this probability; needs a tuned posterior"}
    )
    prediction_set_method: str | None = field(
        default=None, metadata={"help": "how the sets are made; default: aps", "choices": ["aps", "raps", "lac"]}
    )
    batch_size: int = field(default=32, metadata={"help": "texts per forward"})
    device: str | None = field(default=None, metadata={"help": "such as cpu or cuda:0"})
    overwrite: bool = field(default=False, metadata={"help": "replace --output"})


def run(options: Options, out: TextIO) -> None:
    """Predict, and write a record for each text in the order of the texts.

    Raises:
        SwagError: No texts or several sources of texts, another kind of file, or something that the pipeline refuses.
    """
    form = ".jsonl" if options.output is None else Path(options.output).suffix
    if form not in _FORMATS:
        raise SwagError(f"--output is a file that ends in {', '.join(_FORMATS)}, got {options.output!r}.")
    if form == ".parquet":
        require("pyarrow.parquet")
    asked = {name: value for name in PredictionOptions.option_names() if (value := getattr(options, name, None)) is not None}
    PredictionOptions().updated(asked)  # refuses numbers out of range before anything is loaded
    texts = _texts(options)
    with prepared_outputs(files=[options.output], overwrite=options.overwrite):
        classifier = load_classifier(options.model, device=options.device)
        rows = list(_predictions(classifier, texts, asked, options.batch_size))
        if options.output is None:
            out.write(_as_jsonl(rows))
            return
        encoded = {
            ".jsonl": lambda: _as_jsonl(rows).encode(),
            ".csv": lambda: _as_csv(rows),
            ".parquet": lambda: _as_parquet(rows),
        }
        write_files({options.output: encoded[form]()})


def _texts(options: Options) -> list[str]:
    sources = [name for name in ("texts", "file", "dataset") if getattr(options, name)]
    if len(sources) != 1:
        raise SwagError("predict takes texts after MODEL, those of --file, or those of --dataset: give one of the three.")
    if options.texts:
        return options.texts
    if options.file is not None and Path(options.file).suffix == ".txt":
        try:
            lines = Path(options.file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SwagError(f"The texts in {options.file!r} cannot be read: {error}") from error
        texts = [line for line in lines if line.strip()]
    else:
        if options.file is not None and not Path(options.file).is_file():
            raise SwagError(f"There is no file {options.file!r}.")
        split = None if options.file is not None else options.split
        texts = read_any_text(options.file or str(options.dataset), split, options.text_column)
    if not texts:
        raise SwagError(f"There are no texts in {options.file or options.dataset!r}.")
    return texts


def _predictions(classifier: Any, texts: list[str], asked: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """Return a record for each text; a bar on standard error where it takes longer than two seconds."""
    from tqdm import tqdm

    classifier([], **asked)  # refuses what cannot be done before the first text
    with tqdm(total=len(texts), unit="text", delay=2) as bar:
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            predictions = classifier(part, batch_size=size, truncation=True, **asked)
            for text, prediction in zip(part, predictions, strict=True):
                yield {"text": text, **prediction}
            bar.update(len(part))


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
