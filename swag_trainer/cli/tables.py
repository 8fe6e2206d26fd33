"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from swag_trainer.cli.files import require

_WIDTH_OF_A_FILE = 100


def show(table: Any, out: TextIO) -> None:
    """Print a rich table; into a file or a pipe, which has no width, with at most 100 columns."""
    console = require("rich.console").Console(file=out, width=None if out.isatty() else _WIDTH_OF_A_FILE)
    with console.capture() as shown:  # written here, as rich ends the process where the reader of a pipe has left
        console.print(table)
    out.write(shown.get())


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """Return a table of texts as they are: untrusted input is escaped, not read as markup."""
    escape = require("rich.markup").escape
    table = require("rich.table").Table(title=escape(title))
    for column in columns:
        table.add_column(column, overflow="fold")  # a long name is broken, not cut
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table
