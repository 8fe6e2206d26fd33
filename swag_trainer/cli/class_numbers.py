"""Numbers of the classes of a model, as a data set states them: by their names or by their numbers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from swag_trainer.cli.classifier import class_names
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_sources import LABEL_COLUMNS, Row, missing_column, named_column, refuse
from swag_trainer.errors import SwagError, shortened

_MISSING = (None, "", "-", "-1", -1)  # as NLI data sets mark an example that annotators disagree about


class ClassNumbers:
    """The classes of a model, by name.

    Args:
        options: With ``--labels``, the names in the order of the logits, in the commands that have it, and ``--label-column``.
        config: Of the model.
        recorded: Names of the classes in the posterior's record, if it has some.
        what: What a class is called in errors, such as "tag".

    Attributes:
        names: Of the classes, in the order of the logits.

    Raises:
        SwagError: ``--labels`` does not name each class once, or has the recorded ones in another order.
    """

    def __init__(self, options: TextOptions, config: Any, *, recorded: Sequence[str] | None, what: str = "label") -> None:
        self.names, self._options, self._what = class_names(config), options, what
        given: Sequence[str] | None = getattr(options, "labels", None)
        if given is not None:
            check_given_labels(given, len(self.names), recorded)
            self.names = list(given)

    def labelled(self, rows: Sequence[Row], *, needs_labels: bool) -> list[tuple[Row, int | None]]:
        """Return the rows that have a label, each with the number of its class; where labels are not needed all rows, each with None.

        Warns:
            UserWarning: How many have none: they are left out.

        Raises:
            SwagError: A row has no column of labels, or a label that is no class of the model; or no row has one.
        """
        if not needs_labels:
            return [(row, None) for row in rows]
        found: list[tuple[Row, int | None]] = []
        for row in rows:
            column = named_column(row.values, self._options.label_column, LABEL_COLUMNS)
            if column is None:
                refuse(row, missing_column(row.values, self._options.label_column, LABEL_COLUMNS, "--label-column"))
            value = row.values[column]
            if value not in _MISSING or (value is not None and str(value) in self.names):
                found.append((row, self.number(value, row)))
        if not found:
            raise SwagError(f"None of the {len(rows)} examples has a label; the first is {rows[0].where}.")
        if missing := len(rows) - len(found):
            warnings.warn(f"{missing} of {len(rows)} examples have no label and are left out.", stacklevel=3)
        return found

    def number(self, value: Any, row: Row, *, besides: int | None = None) -> int:
        """Return the number of a class: of its name, or the number that it is. Where a name is a number, only names count.

        Args:
            value: A name or a number.
            row: Where it stands.
            besides: A number that is none of a class and taken all the same.

        Raises:
            SwagError: It is neither.
        """
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and value == besides:
            return int(value)
        name = str(value) if is_number else value
        if isinstance(name, str):
            folded = [each.casefold() for each in self.names]
            if name in self.names:
                return self.names.index(name)
            if folded.count(name.casefold()) == 1:
                return folded.index(name.casefold())
            has_number = any(each.isdecimal() for each in self.names)
            # The numbers of a table are texts.
            if not has_number and re.fullmatch(r"[0-9]{1,9}", name) and int(name) < len(self.names):
                return int(name)
        unnamed = (
            isinstance(value, str)
            and hasattr(self._options, "labels")
            and all(re.fullmatch(r"LABEL_[0-9]+", name) for name in self.names)
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


def check_given_labels(labels: Sequence[str], num_classes: int, recorded: Sequence[str] | None) -> None:
    """Check names that were given for the classes of a model, in the order of its logits.

    Args:
        labels: The names.
        num_classes: C.
        recorded: Names in the posterior's record, if it has some.

    Raises:
        SwagError: They are not one for each class, or the recorded ones in another order.
    """
    if len(labels) != num_classes or len(set(labels)) != len(labels):
        raise SwagError(
            f"--labels names each of the model's {num_classes} classes once, in the order of its logits; it got {list(labels)}."
        )
    known, asked = ([name.casefold() for name in names] for names in (recorded or [], labels))
    if asked != known and sorted(asked) == sorted(known):
        raise SwagError(
            f"--labels has the classes in the order {list(labels)}; that of the logits, in the posterior's record, is {list(recorded or [])}. "
            "Every class would be taken for another one: leave --labels out."
        )
