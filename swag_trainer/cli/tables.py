"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from swag_trainer.cli.files import needed

_WIDTH_OF_A_FILE = 200


def show(table: Any, out: TextIO) -> None:
    """Print a rich table; into a file or a pipe, whose reader has no width, it is not wrapped at 80 letters."""
    console = needed("rich.console").Console(file=out, width=None if out.isatty() else _WIDTH_OF_A_FILE)
    console.print(table)


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """Return a table of texts as they are: names of strangers are no markup."""
    escape = needed("rich.markup").escape
    table = needed("rich.table").Table(*columns, title=escape(title))
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table
