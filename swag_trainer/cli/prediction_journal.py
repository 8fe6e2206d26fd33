"""Predictions on their way into a file: written as they come, so that an interrupted command can go on, and moved to their place at the end.

They are JSON Lines beside the output, behind a line with the options that decide them. That file is written at its end alone, so a crash
costs the line that was being written.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swag_trainer.cli.resumable import ResumableInterrupt
from swag_trainer.errors import SwagError

PARTIAL_SUFFIX = ".partial"


class PredictionJournal:
    """The predictions so far.

    Args:
        output: Where they go when all are there.
        settings: What decides them, as JSON values.
        resume: Whether to go on with those of an interrupted command, if there are any.
        overwrite: Whether these may be thrown away, where ``resume`` is False.

    Attributes:
        path: Of the journal.
        count: How many predictions it holds.

    Raises:
        SwagError: There are predictions of an interrupted command, and neither was asked for; or they cannot be read, or other settings
            decided them.
    """

    def __init__(self, output: str | Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        self.path = Path(f"{output}{PARTIAL_SUFFIX}")
        self.count = 0
        self._settings = dict(settings)
        if not self.path.exists():
            return
        if resume:
            self._check()
        elif overwrite:
            self.path.unlink()
        else:
            raise SwagError(
                f"{str(self.path)!r} holds predictions of a command that was interrupted: --resume goes on with them, --overwrite begins "
                "anew."
            )

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the predictions in their order."""
        if self.count:
            with open(self.path, encoding="utf-8") as file:
                next(file)
                for _ in range(self.count):
                    yield json.loads(file.readline())

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add predictions, and see to it that the operating system has them."""
        if not self.count:
            self.path.write_text(_line({"settings": self._settings}), encoding="utf-8")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))
        self.count += len(records)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Say what is kept where a ``with`` block is interrupted or fails.

        Raises:
            ResumableInterrupt: Ctrl-C was pressed, and there are predictions.
        """
        try:
            yield
        except BaseException as error:
            if self.count and isinstance(error, KeyboardInterrupt):
                raise ResumableInterrupt(
                    f"Interrupted after {self.count} predictions, which are kept in {str(self.path)!r}."
                ) from error
            if self.count:
                sys.stderr.write(f"{self.count} predictions are kept in {str(self.path)!r}; --resume goes on with them.\n")
            raise

    def delete(self) -> None:
        """Delete the file: the predictions are in their place."""
        self.path.unlink(missing_ok=True)

    def _check(self) -> None:
        """Count the complete predictions, and cut off the line that a crash left unfinished."""
        try:
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.decode().split("\n")[:-1]]
            begun = lines[0]["settings"] if lines else self._settings
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise SwagError(
                f"{str(self.path)!r} should hold the predictions of an interrupted command, and cannot be read: {error}. --overwrite begins "
                "anew, without --resume."
            ) from error
        changed = [name for name in {**begun, **self._settings} if begun.get(name) != self._settings.get(name)]
        if changed:
            raise SwagError(
                f"The predictions in {str(self.path)!r} were made with {changed[0]} {begun.get(changed[0])!r}, and are to go on with "
                f"{self._settings.get(changed[0])!r}: resume with the same model and options, or begin anew with --overwrite, without --resume."
            )
        os.truncate(self.path, len(whole))
        self.count = max(0, len(lines) - 1)


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"
