"""Numbers of the classes of a model, as a data set states them: by their names or by their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from swag_trainer.cli.classifier import class_names
from swag_trainer.cli.encoded import refuse
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_sources import Row, missing_column, named_column
from swag_trainer.errors import SwagError, shortened

_LABEL_COLUMNS = ("label", "labels", "label_text", "category", "gold_label")


class ClassNumbers:
    """The classes of a model, by name.

    Args:
        options: With ``--labels``, the names in the order of the logits, in the commands that have it, and ``--label-column``.
        config: Of the model.
        what: What a class is called in errors, such as "tag".

    Attributes:
        names: Of the classes, in the order of the logits.

    Raises:
        SwagError: ``--labels`` does not name each class once.
    """

    def __init__(self, options: TextOptions, config: Any, *, what: str = "label") -> None:
        self.names, self._options, self._what = class_names(config), options, what
        given: Sequence[str] | None = getattr(options, "labels", None)
        if given is not None:
            if len(given) != len(self.names) or len(set(given)) != len(given):
                raise SwagError(
                    f"--labels names each of the model's {len(self.names)} {what}s once, in the order of its logits; it got {list(given)}."
                )
            self.names = list(given)

    def of_row(self, row: Row) -> int:
        """Return the number of the class in a row's column of labels.

        Raises:
            SwagError: There is no such column, or it holds no class of the model.
        """
        column = named_column(row.values, self._options.label_column, _LABEL_COLUMNS)
        if column is None:
            refuse(row, missing_column(row.values, self._options.label_column, _LABEL_COLUMNS, "--label-column"))
        return self.number(row.values[column], row)

    def number(self, value: Any, row: Row, *, besides: int | None = None) -> int:
        """Return the number of a class: of its name, or the number that it is.

        Args:
            value: A name or a number.
            row: Where it stands.
            besides: A number that is none of a class and taken all the same.

        Raises:
            SwagError: It is neither.
        """
        if isinstance(value, str) and value in self.names:
            return self.names.index(value)
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value):  # of a table, where numbers are texts
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and (value == besides or 0 <= value < len(self.names)):
            return value
        unnamed = (
            isinstance(value, str)
            and hasattr(self._options, "labels")
            and all(re.fullmatch(r"LABEL_\d+", name) for name in self.names)
        )
        advice = (
            "--labels names them, in the order of the logits."
            if unnamed
            else f"a {self._what} is one of them, or its number from 0."
        )
        shown = ", ".join(map(repr, self.names[:10])) + " ..." * (len(self.names) > 10)
        raise SwagError(
            f"The example in {row.where} has the {self._what} {shortened(repr(value))}; the model has {shown}: {advice}"
        )
