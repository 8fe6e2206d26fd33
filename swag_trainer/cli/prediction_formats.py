"""Predictions as JSON Lines, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Record = dict[str, Any]


def as_json_lines(records: Iterable[Record]) -> str:
    """Return a JSON object a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def as_csv(records: Sequence[Record]) -> bytes:
    """Return a table with empty cells where there is no value; lists and objects as JSON, since a label may hold a comma."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, _columns(records))
    writer.writeheader()
    for record in records:
        writer.writerow({name: _as_text(value) if isinstance(value, (list, dict)) else value for name, value in record.items()})
    return buffer.getvalue().encode()


def as_parquet(records: Sequence[Record]) -> bytes:
    """Return a table; a column whose values have several types becomes one of JSON texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name in _columns(records):
        values = [record.get(name) for record in records]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = pa.array([None if value is None else _as_text(value) for value in values])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Sequence[Record]], bytes]] = {
    ".jsonl": lambda records: as_json_lines(records).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
}


def _columns(records: Iterable[Record]) -> list[str]:
    """Return every key of any record: one that abstains has some that others lack."""
    return list(dict.fromkeys(name for record in records for name in record))


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
