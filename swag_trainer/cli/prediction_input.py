"""Texts to classify: from the command line, standard input, a file or a data set, one after the other with what stands beside them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from swag_trainer.cli.paths import neighbour_hint
from swag_trainer.cli.text_data import read_any_text
from swag_trainer.cli.text_files import SUFFIXES, is_unicode, read_lines
from swag_trainer.cli.text_sources import Example
from swag_trainer.errors import SwagError

STANDARD_INPUT = "-"


def examples_to_classify(
    texts: list[str], file: str | None, dataset: str | None, *, split: str, text_column: str | None
) -> Iterable[Example]:
    """Return the examples; those of standard input are read when they are asked for, so that a program can go on writing them.

    Args:
        texts: Those of the command line; "-" alone is standard input.
        file: A file, or "-".
        dataset: A data set on the Hub, or a folder of files.
        split: Of ``dataset``.
        text_column: Column of the texts, None for the usual names.

    Raises:
        SwagError: None of the three was given or several, or a file is not there or has no texts.
    """
    if sum(map(bool, (texts, file, dataset))) != 1:
        raise SwagError("predict takes texts after MODEL, those of --file, or those of --dataset: give one of the three.")
    if STANDARD_INPUT in (file, *texts[: len(texts) == 1]):
        return _of_standard_input()
    if texts:
        return [Example(text, None, f"text {number}") for number, text in enumerate(texts, start=1)]
    if file is not None and not Path(file).is_file():
        raise SwagError(f"There is no file {file!r}.{neighbour_hint(file)}")
    if file is not None and Path(file).suffix == ".txt":
        lines = enumerate(read_lines(Path(file)), start=1)
        examples = [Example(text, None, f"line {line} of {file!r}", line) for line, text in lines if text.strip()]
    else:
        examples = read_any_text(file or str(dataset), None if file is not None else split, text_column)
    if not examples:
        raise SwagError(f"There are no texts in {file or dataset!r}.")
    return examples


def _of_standard_input() -> Iterator[Example]:
    """Yield a text for each line that is not empty."""
    for number, line in enumerate(sys.stdin, start=1):
        text, where = line.rstrip("\r\n"), f"line {number} of standard input"
        if not is_unicode(text):
            yield Example("", None, where, number, "it is not in UTF-8.")
        elif text.strip():
            yield Example(text, None, where, number)


def refuse_paths(model: str, texts: Iterable[str]) -> None:
    """Refuse to classify the path of a file instead of what the file holds.

    Args:
        model: What was given as MODEL, for advice.
        texts: Those of the command line.

    Raises:
        SwagError: A text is the path of a file or folder, or looks like one.
    """
    for text in texts:
        _refuse_path(model, text)


def _refuse_path(model: str, text: str) -> None:
    path = Path(text)
    named = path.suffix in (".txt", *SUFFIXES) and not any(letter.isspace() for letter in text)
    try:
        is_file, is_folder = path.is_file(), path.is_dir() and os.sep in text
    except (OSError, ValueError):  # too long for a path, or with a null character
        return
    if is_folder:
        raise SwagError(
            f"{text!r} is a folder, and the text to classify would be its path. For what it holds: --dataset {text}"
        )
    if is_file or named:
        there = "is a file" if is_file else "looks like the path of a file, which is not there"
        raise SwagError(
            f"{text!r} {there}, and the text to classify would be its path. For the texts that a file holds: swag-trainer predict {model} "
            f"--file {text}"
        )
