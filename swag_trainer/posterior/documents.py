"""Reading frozen dataclasses from JSON documents; nothing in a document is trusted to have the right type."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from swag_trainer.errors import PosteriorFormatError

Value = TypeVar("Value")


def read_dataclass(kind: type[Value], document: Mapping[str, Any], *, where: str) -> Value:
    """Make a dataclass of the JSON object that ``dataclasses.asdict`` made of one, with those inside it.

    A field that an earlier version did not know yet keeps its default; one that this version does not know is refused.

    Args:
        kind: The dataclass.
        document: The JSON object.
        where: What the document is, to begin a sentence with.

    Raises:
        PosteriorFormatError: A field is missing, unknown, of another type, or refused by the dataclass itself.
    """
    hints = get_type_hints(kind)
    needed = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    if not isinstance(document, dict) or not needed <= set(document) <= set(hints):
        found = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise PosteriorFormatError(f"{where} should state {sorted(hints)}, it states {str(found)[:300]}.")
    for name, value in document.items():
        if not _fits(value, hints[name]):
            raise PosteriorFormatError(f"{where} states {name}={str(value)[:100]!r}; expected {hints[name]}.")
    values = {name: _made(value, hints[name], where=f"{where}, in {name!r},") for name, value in document.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise PosteriorFormatError(f"{where} states what cannot be: {str(error)[:300]}") from error


def _fits(value: object, hint: Any) -> bool:
    """Is a JSON value of the type that an annotation asks for? A whole number counts as a float that can hold it, a truth value as neither.

    Of a dataclass only that the value is an object; its own fields are looked at when it is made.
    """
    if get_origin(hint) is UnionType:
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        return isinstance(value, list) and all(_fits(element, item) for element in value)
    if get_origin(hint) is dict:
        _, item = get_args(hint)
        return isinstance(value, dict) and all(_fits(element, item) for element in value.values())
    if is_dataclass(hint):
        return isinstance(value, dict)
    if isinstance(value, bool):
        return hint is bool
    if hint is float and isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def _made(value: Any, hint: Any, *, where: str) -> Any:
    """Turn the objects in a JSON value that fits into the dataclasses that the annotation names."""
    kind = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), None)
    if kind is None or value is None:
        return value
    if isinstance(value, list):
        return [read_dataclass(kind, element, where=where) for element in value]
    return read_dataclass(kind, value, where=where)
