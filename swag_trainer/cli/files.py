"""Output files of commands: checked before the work begins, written whole or not at all, never over others unless asked."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError, SwagError
from swag_trainer.posterior.atomic import write_together
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.regular_file import read_bytes
from swag_trainer.posterior.saved_adapter import ADAPTER_WEIGHTS


@contextlib.contextmanager
def prepared_outputs(
    *, files: Iterable[str | Path | None] = (), posteriors: Iterable[str | Path] = (), overwrite: bool
) -> Iterator[None]:
    """Check that the outputs of a command can be written and make their folders, for the length of a ``with`` block.

    Where the block fails, the folders that were made for it go again, unless it left something in them.

    Args:
        files: Paths of files; None for those that were not asked for.
        posteriors: Folders to save posteriors in.
        overwrite: Whether files, and posteriors, that are there already may be replaced.

    Raises:
        SwagError: A file, an adapter or a posterior is there already and ``overwrite`` is False, two outputs have one path, a path is a folder
            where a file is needed or the other way round, or a folder cannot be made or written into.
    """
    paths, folders = list(map(Path, filter(None, files))), list(map(Path, posteriors))
    resolved = [path.resolve() for path in (*paths, *folders)]
    for path, place in zip((*paths, *folders), resolved, strict=True):
        if resolved.count(place) > 1:
            raise SwagError(f"Two outputs have the path {str(path)!r}; the second would replace the first.")
    refuse_existing(*paths, overwrite=overwrite)
    for folder in folders:
        for name, what in ((POSTERIOR_FILE, "a posterior"), (ADAPTER_WEIGHTS, "an adapter")):
            if (folder / name).exists() and not overwrite:
                raise SwagError(f"{str(folder)!r} holds {what} already; --overwrite replaces it.")
    made: list[Path] = []
    try:
        for folder in dict.fromkeys([*(path.parent for path in paths), *folders]):
            _make_writable(folder, made)
        yield
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
        raise


def refuse_existing(*paths: str | Path | None, overwrite: bool) -> None:
    """Check that files may be written.

    Raises:
        SwagError: A file is there already and ``overwrite`` is False, or a path is a folder.
    """
    for path in map(Path, filter(None, paths)):
        if path.is_dir():
            raise SwagError(f"{str(path)!r} is a folder; the path of a file is needed.")
        if path.exists() and not overwrite:
            raise SwagError(f"{str(path)!r} is there already; --overwrite replaces it.")


def write_files(contents: Mapping[str | Path, bytes]) -> None:
    """Write files together, each whole, over those that are there; where one does not fit on the disk none is replaced.

    Raises:
        OSError: A file cannot be written.
    """
    write_together({Path(path): content for path, content in contents.items()})


def text_of(path: Path) -> str | None:
    """Return the text of a file, None where there is none.

    Raises:
        SwagError: It cannot be read as UTF-8.
    """
    try:
        data = read_bytes(path)
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except PosteriorNotFoundError:
        return None
    except (PosteriorFormatError, UnicodeDecodeError) as error:
        raise SwagError(f"{str(path)!r} cannot be read as text: {error}") from error


def require(*modules: str, extra: str = "cli") -> ModuleType:
    """Import modules of optional packages and return the last.

    Args:
        *modules: Their names.
        extra: The extra of swag-trainer that installs them.

    Raises:
        SwagError: One is not installed.
    """
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            package = name.partition(".")[0]
            raise SwagError(f"This needs the package {package!r}: pip install 'swag-trainer[{extra}]'") from error
    return module


def _make_writable(folder: Path, made: list[Path]) -> None:
    """Make a folder with its parents, note those that were new, and try a file in it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SwagError(
            f"Nothing can be written into the folder {str(folder)!r}: {error.strerror or error}. Choose another path for the output."
        ) from error
