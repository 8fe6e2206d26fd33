"""Options of a command: a frozen dataclass, read from a YAML file and from the command line, which overrides the file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from transformers import HfArgumentParser

from swag_trainer.cli.paths import refuse_missing
from swag_trainer.errors import SwagError, printable, shortened
from swag_trainer.posterior.regular_file import read_bytes

_MOST_VALUES = 100_000

OptionsT = TypeVar("OptionsT", bound="CommonOptions")


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every command.

    Attributes:
        positionals: Names of the options that may be given without ``--name``, in this order; one that is a list takes all the rest.
        mappings: Names of the options that are a JSON object, which a YAML file may spell out.
        counts: Names of the options that are whole numbers of at least 1.
        sources: Names of the options of this class that are files, folders or names on the Hub, or lists of those.

    Raises:
        SwagError: A count is below 1, or a source is a path where nothing is.
    """

    positionals: ClassVar[tuple[str, ...]] = ("model",)
    mappings: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[tuple[str, ...]] = ()

    config: str | None = field(default=None, metadata={"help": "a YAML file of options; the command line overrides it"})
    debug: bool = field(default=False, metadata={"help": "show the traceback of an error"})

    def __post_init__(self) -> None:
        for name in self.counts:
            if (value := getattr(self, name)) is not None and value < 1:
                raise SwagError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
        # Every class says which of its own options are sources.
        for name in dict.fromkeys(name for kind in type(self).__mro__ for name in vars(kind).get("sources", ())):
            value = getattr(self, name) or []
            for source in [value] if isinstance(value, str) else value:
                refuse_missing(source, name.upper() if name in self.positionals else f"--{name.replace('_', '-')}")


@dataclass(frozen=True, kw_only=True)
class PosteriorOptions(CommonOptions):
    """Options that name an adapter with its posterior."""

    sources: ClassVar[tuple[str, ...]] = ("model",)

    model: str = field(metadata={"help": "a folder with a posterior, or a repository on the Hub"})
    ignore_mismatched_adapter: bool = field(
        default=False,
        metadata={
            "help": "accept an adapter or a base model other than the recorded one, with the same weights' names and shapes"
        },
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(PosteriorOptions):
    """Options that name a classifier to predict with.

    Raises:
        SwagError: A revision of a folder.
    """

    sources: ClassVar[tuple[str, ...]] = ("base_model",)

    task: str | None = field(
        default=None,
        metadata={
            "help": "what to predict, such as image-classification; default: the task in the posterior's record, else what adapter and base "
            "model tell"
        },
    )
    base_model: str | None = field(
        default=None,
        metadata={"help": "folder or Hub name of the base model, where it lies elsewhere than adapter_config.json says"},
    )
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of MODEL on the Hub"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.revision is not None and Path(self.model).exists():
            raise SwagError(
                f"--revision is that of a repository on the Hub, and {self.model!r} is a folder here: leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class TextOptions(CommonOptions):
    """Options that name labelled text."""

    sources: ClassVar[tuple[str, ...]] = ("dataset",)

    dataset: str = field(
        metadata={
            "help": "labelled examples: 'name' or 'name:config' on the Hub, a .csv, .tsv, .jsonl or .json file, or a folder of those, or of images"
        }
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "name of the data where it is published; default: the file's name"}
    )
    text_column: str | None = field(default=None, metadata={"help": "column of the texts, where its name is not a usual one"})
    label_column: str | None = field(default=None, metadata={"help": "column of the labels, where its name is not a usual one"})


@dataclass(frozen=True, kw_only=True)
class CardOptions(PosteriorOptions):
    """Options that name a posterior, and what goes into the metadata of its model card."""

    license: str | None = field(default=None, metadata={"help": "of the adapter, as the Hub spells it, such as apache-2.0"})
    language: list[str] | None = field(default=None, metadata={"help": "of the texts: ISO 639 codes such as en"})
    datasets: list[str] | None = field(default=None, metadata={"help": "ids on the Hub of the data that it was trained on"})
    base_model: str | None = field(
        default=None,
        metadata={"help": "id of the base model on the Hub, where adapter_config.json names a folder of this machine"},
    )

    def given(self) -> dict[str, Any]:
        """Return what was given, by the argument of `hub_cards.build_card`."""
        options = {"license": self.license, "language": self.language, "datasets": self.datasets}
        return {name: value for name, value in options.items() if value is not None}


def parse_options(options: type[OptionsT], argv: Sequence[str], *, command: str, description: str | None) -> OptionsT:
    """Read a command line; a first argument that ends in .yaml or .yml is read as ``--config``.

    Everything after ``--`` is taken as it is, so that a text may begin with a dash.

    Raises:
        SystemExit: After ``--help`` (code 0), or because of an option that is unknown, missing or of another type (code 2).
        SwagError: The YAML file cannot be read.
    """
    parser = HfArgumentParser(
        options,
        prog=f"swag-trainer {command}",
        usage=f"swag-trainer {command} [FILE.yaml] {' '.join(name.upper() for name in options.positionals)} [options]",
        description=description,
        allow_abbrev=False,
    )
    required = {action.dest for action in parser._actions if action.required}
    for action in parser._actions:
        action.required = False  # the YAML file or a positional argument may have it
    argv = list(argv)
    if argv and Path(argv[0]).suffix in (".yaml", ".yml"):
        argv = ["--config", *argv]
    argv, untouched = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    config = parser.parse_known_args(argv)[0].config
    namespace = parser.parse_args([] if config is None else _yaml_arguments(parser, Path(config), options.mappings))
    namespace, rest = parser.parse_known_args(argv, namespace)
    _refuse_unknown(parser, rest)
    given = [name for name in options.positionals if any(item.partition("=")[0] in _spellings(name) for item in argv)]
    for name, value in _positional_values(parser, options, [*rest, *untouched]).items():
        if name in given:
            parser.error(f"--{name} was given, and {value!r} beside it.")
        setattr(namespace, name, value)
    missing = sorted(name for name in required if getattr(namespace, name) is None)
    if missing:
        parser.error("needs " + ", ".join(f"--{name.replace('_', '-')}" for name in missing))
    return options(**vars(namespace))


def _yaml_arguments(parser: HfArgumentParser, path: Path, mappings: Sequence[str]) -> list[str]:
    """Return the settings of a YAML file as arguments of a command line, so that argparse checks the types of both alike."""
    import yaml

    try:
        settings = yaml.safe_load(read_bytes(path).decode("utf-8-sig"))
    # ValueError: a date such as 2026-13-45, a number of more than 4,300 digits, bytes that are not UTF-8.
    except (SwagError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SwagError(f"The options in {str(path)!r} cannot be read: {printable(str(error)[:500])}") from error
    if not isinstance(settings, dict):
        raise SwagError(f"{str(path)!r} should hold lines such as 'steps: 400', it holds {type(settings).__name__}.")
    if _is_larger(settings, _MOST_VALUES):
        raise SwagError(
            f"The options in {str(path)!r} are more than {_MOST_VALUES} values, counted as often as aliases repeat them."
        )
    arguments: list[str] = []
    for key, value in settings.items():
        name = str(key).replace("-", "_")
        if name not in _names(parser) - {"config"}:
            _refuse_unknown(parser, [f"--{name}"], where=f" in {str(path)!r}")
        if name in mappings and isinstance(value, dict):
            value = _as_json(name, value, path)
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, (dict, list, tuple, set)) for item in values):
            parser.error(f"{key!r} in {str(path)!r} is a value or a list of values, got {shortened(repr(value))}.")
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            arguments.append(f"--{name}={value}")
    return arguments


def _as_json(name: str, value: dict[Any, Any], path: Path) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:  # a date, or a list as a key
        raise SwagError(f"{name!r} in {str(path)!r} should hold text, numbers, lists and mappings alone: {error}") from error


def _is_larger(value: Any, most: int) -> bool:
    """Does a YAML value, written out, have more parts than ``most``? Aliases of aliases make much of a short file, or go round for ever."""
    left, parts = most, [value]
    while parts:
        left -= 1
        part = parts.pop()
        inside = [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, (list, tuple, set)) else []
        if left < len(inside):
            return True
        parts.extend(inside)
    return False


def _refuse_unknown(parser: HfArgumentParser, arguments: Sequence[str], *, where: str = "") -> None:
    """Refuse what argparse left over and begins with a dash: it is no option of the command."""
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1:
            name = argument.partition("=")[0]
            options = [f"--{name.replace('_', '-')}" for name in sorted(_names(parser))]
            close = difflib.get_close_matches(name.replace("_", "-"), options, n=1)
            parser.error(f"there is no option {name}{where}." + (f" Did you mean {close[0]}?" if close else ""))


def _positional_values(parser: HfArgumentParser, options: type[CommonOptions], arguments: list[str]) -> dict[str, Any]:
    lists = {item.name for item in fields(options) if getattr(item.type, "__origin__", None) is list}
    values: dict[str, Any] = {}
    for name in options.positionals:
        if arguments:
            values[name], arguments = (arguments, []) if name in lists else (arguments[0], arguments[1:])
    if arguments:
        parser.error(f"does not know what to do with {arguments[0]!r}.")
    return values


def _names(parser: HfArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions} - {"help"}


def _spellings(name: str) -> tuple[str, str]:
    return f"--{name}", f"--{name.replace('_', '-')}"
