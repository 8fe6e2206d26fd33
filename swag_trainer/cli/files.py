"""Files that commands write: whole or not at all, and never over others unless asked to."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from swag_trainer.errors import SwagError
from swag_trainer.posterior.atomic import write_together
from swag_trainer.posterior.folder import POSTERIOR_FILE


def refuse_existing(*paths: str | Path | None, overwrite: bool) -> None:
    """Check before the work begins that its results may be written.

    Raises:
        SwagError: A file is there already and ``overwrite`` is False, or a path is a folder.
    """
    for path in map(Path, filter(None, paths)):
        if path.is_dir():
            raise SwagError(f"{str(path)!r} is a folder; the path of a file is needed.")
        if path.exists() and not overwrite:
            raise SwagError(f"{str(path)!r} is there already; --overwrite replaces it.")


def refuse_posterior(folder: Path, *, overwrite: bool) -> None:
    """Check before the work begins that a posterior may be saved in a folder.

    Raises:
        SwagError: It holds one already and ``overwrite`` is False.
    """
    if (folder / POSTERIOR_FILE).exists() and not overwrite:
        raise SwagError(f"{str(folder)!r} holds a posterior already; --overwrite replaces it.")


def write_files(contents: Mapping[str | Path, bytes], *, overwrite: bool) -> None:
    """Write files together, each whole; where one does not fit on the disk none is replaced. Folders are made.

    Raises:
        SwagError: As `refuse_existing`.
        OSError: A file cannot be written.
    """
    refuse_existing(*contents, overwrite=overwrite)
    for path in map(Path, contents):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_together({Path(path): content for path, content in contents.items()})


def needed(*modules: str) -> ModuleType:
    """Import modules of optional packages and return the last.

    Raises:
        SwagError: One is not installed.
    """
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            package = name.partition(".")[0]
            raise SwagError(f"This needs the package {package!r}: pip install 'swag-trainer[cli]'") from error
    return module
