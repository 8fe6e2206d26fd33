"""Ids of repositories on the Hub that a command was given."""

from __future__ import annotations

from huggingface_hub.utils import HFValidationError, validate_repo_id

from swag_trainer.errors import SwagError


def check_repo_id(name: str, option: str) -> None:
    """Refuse what cannot be the id of a repository on the Hub.

    Args:
        name: What was given.
        option: Where, such as "--repo".

    Raises:
        SwagError: It is not one.
    """
    try:
        validate_repo_id(name)
        if name.endswith("\n"):  # which validate_repo_id lets pass in huggingface_hub 1
            raise HFValidationError("It ends with a newline.")
    except HFValidationError as error:
        raise SwagError(f"{option} {name!r} is not the id of a repository on the Hub: {error}") from error
