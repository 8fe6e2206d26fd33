import io

import pytest

from swag_trainer.cli.tables import table_of

console = pytest.importorskip("rich.console")


def test_a_name_that_does_not_fit_is_broken_and_not_cut():
    # Red for: "a_long_na…", which is the name of no class.
    screen = console.Console(width=40, file=io.StringIO())
    screen.print(table_of("labels", ("text", "label"), [["word " * 12, "declined_cash_withdrawal_" * 3]]))
    shown = screen.file.getvalue()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 40
    cells = "".join(line.split("│")[2].strip() for line in shown.splitlines() if line.count("│") == 3)
    assert cells == "declined_cash_withdrawal_" * 3
