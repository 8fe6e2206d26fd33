"""Answer texts with averaged probabilities and their uncertainty, in JSON Lines, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TextIO

from swag_trainer.cli.classifier import load_classifier
from swag_trainer.cli.files import needed, refuse_existing, write_files
from swag_trainer.cli.options import CommonOptions
from swag_trainer.cli.text_data import read_any_text
from swag_trainer.errors import SwagError

_FORMATS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Texts, and what the pipeline is asked for."""

    positionals: ClassVar[tuple[str, ...]] = ("model", "texts")

    model: str = field(metadata={"help": "a folder with a posterior, or a repository on the Hub"})
    texts: list[str] = field(default_factory=list, metadata={"help": "what to answer"})
    file: str | None = field(default=None, metadata={"help": "a .txt file with a text a line, or a .jsonl or .csv file"})
    dataset: str | None = field(default=None, metadata={"help": "'name' or 'name:config' on the Hub, or a folder of files"})
    split: str = field(default="test", metadata={"help": "of --dataset"})
    text_column: str | None = field(default=None, metadata={"help": "column of the texts, where its name is not a usual one"})
    output: str | None = field(
        default=None, metadata={"help": "a .jsonl, .csv or .parquet file; JSON Lines on standard output"}
    )
    num_samples: int | None = field(default=None, metadata={"help": "draws; as many as it was tuned with, or 10"})
    seed: int | None = field(default=None, metadata={"help": "of the draws; that of the tuning, or 0"})
    scale: float | None = field(
        default=None, metadata={"help": "factor of the covariance; the posterior's own, 0 for the mean"}
    )
    abstain_below: float | None = field(default=None, metadata={"help": "give no label below this score"})
    risk: float | None = field(default=None, metadata={"help": "give labels of which at most this share is wrong (tuned)"})
    coverage: float | None = field(default=None, metadata={"help": "give labels to this share of the texts (tuned)"})
    prediction_set: float | None = field(
        default=None, metadata={"help": "name the labels of which the true one is one with this probability (tuned)"}
    )
    prediction_set_method: str | None = field(
        default=None, metadata={"help": "how the sets are made; aps by itself", "choices": ["aps", "raps", "lac"]}
    )
    batch_size: int = field(default=32, metadata={"help": "texts per forward"})
    device: str | None = field(default=None, metadata={"help": "such as cpu or cuda:0"})
    overwrite: bool = field(default=False, metadata={"help": "replace --output"})


def run(options: Options, out: TextIO) -> None:
    """Answer, and write a row for each text in the order of the texts.

    Raises:
        SwagError: No texts or several sources of texts, another kind of file, or something that the pipeline refuses.
    """
    form = ".jsonl" if options.output is None else Path(options.output).suffix
    if form not in _FORMATS:
        raise SwagError(f"--output is a file that ends in {', '.join(_FORMATS)}, got {options.output!r}.")
    if form == ".parquet":
        needed("pyarrow.parquet")
    refuse_existing(options.output, overwrite=options.overwrite)
    texts = _texts(options)
    classifier = load_classifier(options.model, device=options.device)
    rows = list(_answers(classifier, texts, options))
    if options.output is None:
        out.write(_as_jsonl(rows))
    else:
        encoded = {
            ".jsonl": lambda: _as_jsonl(rows).encode(),
            ".csv": lambda: _as_csv(rows),
            ".parquet": lambda: _as_parquet(rows),
        }
        write_files({options.output: encoded[form]()}, overwrite=options.overwrite)


def _texts(options: Options) -> list[str]:
    sources = [name for name in ("texts", "file", "dataset") if getattr(options, name)]
    if len(sources) != 1:
        raise SwagError("predict answers texts behind MODEL, those of --file, or those of --dataset: give one of the three.")
    if options.texts:
        return options.texts
    if options.file is not None and Path(options.file).suffix == ".txt":
        try:
            lines = Path(options.file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SwagError(f"The texts in {options.file!r} cannot be read: {error}") from error
        return [line for line in lines if line.strip()]
    if options.file is not None and not Path(options.file).is_file():
        raise SwagError(f"There is no file {options.file!r}.")
    split = None if options.file is not None else options.split
    return read_any_text(options.file or str(options.dataset), split, options.text_column)


def _answers(classifier: Any, texts: list[str], options: Options) -> Iterator[dict[str, Any]]:
    """One row for each text; a bar on standard error where it takes longer than two seconds."""
    from tqdm import tqdm

    request = {
        name: getattr(options, name)
        for name in (
            "num_samples",
            "seed",
            "scale",
            "abstain_below",
            "risk",
            "coverage",
            "prediction_set",
            "prediction_set_method",
        )
        if getattr(options, name) is not None
    }
    size = options.batch_size
    if size < 1:
        raise SwagError(f"--batch-size is at least 1, got {size}.")
    classifier([], **request)  # refuses what cannot be done before the first text
    with tqdm(total=len(texts), unit="text", delay=2) as bar:
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            for text, answer in zip(part, classifier(part, batch_size=size, truncation=True, **request), strict=True):
                yield {"text": text, **answer}
            bar.update(len(part))


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Every key of any row: an answer that was withheld has some that others lack."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _as_jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _as_csv(rows: list[dict[str, Any]]) -> bytes:
    """Nothing where there is no value; a set of labels as JSON, since a label may hold a comma."""
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
