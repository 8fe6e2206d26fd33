"""Readers of text files: CSV and TSV, JSON and JSON Lines, and plain text with an example a line.

Nothing is guessed in silence: a line that cannot be an example becomes one with a problem, which training refuses and `predict` reports.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swag_trainer.errors import SwagError
from swag_trainer.posterior.regular_file import read_bytes

MAX_BYTES = 8 * 1024**3
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")


@dataclass(frozen=True)
class Record:
    """One example of a file.

    Attributes:
        line: Number of its first line, from 1; in a .json file, its place in the list.
        values: Its columns by name.
        problem: Why it cannot be read; None where it can.
    """

    line: int
    values: Mapping[str, Any]
    problem: str | None = None


def read_records(path: Path) -> Iterator[Record]:
    """Read the examples of a file in one of the formats of ``SUFFIXES``.

    Raises:
        SwagError: It is not UTF-8, not of its format, or has two columns of one name.
    """
    text = decoded(path)
    if path.suffix == ".jsonl":
        return _of_json_lines(text)
    if path.suffix == ".json":
        return _of_json(path, text)
    return _of_table(path, text)


def read_lines(path: Path) -> list[str]:
    r"""Return the lines of a text file, which end in "\n" or "\r\n" and in nothing else that Unicode calls a line's end."""
    lines = decoded(path).replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def decoded(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Raises:
        SwagError: It cannot be read, or is in another encoding.
    """
    try:
        return read_bytes(path, max_bytes=MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SwagError(
            f"{str(path)!r} is not in UTF-8: line {line} has the byte 0x{error.object[error.start]:02x}. It may be in cp1252 or UTF-16; "
            "save it as UTF-8 and try again."
        ) from error


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; half of a surrogate pair, as in ``"\\ud83d"``, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unicode_problem(values: Mapping[str, Any]) -> str | None:
    """Return why the columns of an example cannot be written as UTF-8; None where they can."""
    if is_unicode(json.dumps(values, ensure_ascii=False, default=str)):
        return None
    return "it holds half of a surrogate pair, such as half an emoji, which no encoding has."


def _of_json_lines(text: str) -> Iterator[Record]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                value = json.loads(content)
            except (json.JSONDecodeError, RecursionError) as error:
                yield Record(line, {}, f"it is not valid JSON: {error}")
                continue
            yield _of_object(line, value)


def _of_json(path: Path, text: str) -> Iterator[Record]:
    try:
        items = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SwagError(f"{str(path)!r} is not valid JSON: {error}") from error
    if isinstance(items, dict) and isinstance(items.get("data"), list):
        items = items["data"]
    if not isinstance(items, list):
        raise SwagError(f"{str(path)!r} should hold a list of objects, one for each example; it holds {type(items).__name__}.")
    return (_of_object(place, item) for place, item in enumerate(items, start=1))


def _of_object(line: int, value: Any) -> Record:
    if isinstance(value, dict):
        return Record(line, value)
    return Record(line, {}, f"it is not a JSON object with columns but {type(value).__name__}")


def _of_table(path: Path, text: str) -> Iterator[Record]:
    delimiter = "\t" if path.suffix == ".tsv" else _delimiter(text.partition("\n")[0])
    before = csv.field_size_limit(sys.maxsize)  # of the process; 131,072 characters otherwise
    try:
        rows = _rows(path, text, delimiter)
    finally:
        csv.field_size_limit(before)
    _, header = rows[0] if rows else (1, [])
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise SwagError(f"{str(path)!r} has two columns of the name {twice[0]!r}; rename one.")
    return (_of_row(line, header, row) for line, row in rows[1:])


def _rows(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the rows that are not empty, each with the number of its first line."""
    reader, rows, line = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [], 1
    try:
        for row in reader:
            if row:
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise SwagError(f"{str(path)!r} cannot be read as a table from line {line} on: {error}.") from error
    return rows


def _of_row(line: int, header: list[str], row: list[str]) -> Record:
    if len(row) != len(header):
        hint = " Does a text hold a comma without quotes around it?" if len(row) > len(header) else ""
        return Record(line, {}, f"it has {len(row)} fields and the header has {len(header)}.{hint}")
    return Record(line, dict(zip(header, row, strict=True)))


def _delimiter(header: str) -> str:
    """Return what separates the names of a header: a comma unless only semicolons or tabs do."""
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")
