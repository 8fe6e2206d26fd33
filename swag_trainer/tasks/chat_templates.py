"""Errors of chat templates, which come with the files of a tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from swag_trainer.errors import SwagError


@contextlib.contextmanager
def chat_errors() -> Iterator[None]:
    """Turn what a tokenizer's chat template raises into a `SwagError`: it is a program, and comes with the files of the tokenizer."""
    try:
        yield
    except SwagError:
        raise
    except Exception as error:  # of expressions in the template, and of jinja2
        raise SwagError(
            f"The tokenizer's chat template cannot be used for this chat: {type(error).__name__}: {str(error)[:300]!r} Pass another "
            "tokenizer, pipeline(..., tokenizer=...), or the prompt as a text."
        ) from error
